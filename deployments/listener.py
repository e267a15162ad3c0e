"""Where Ray listens, and an own HAProxy listener where that is not where the platform is to be reached.

Ray's HAProxy reaches the replicas of its own machine at 127.0.0.1, and `::` is all IPv4 addresses to it. So Ray always
gets an IPv4 address, and a second configuration file of the same HAProxy forwards connections to any other one.
"""

from serve.config.addresses import authority, socket_address

_SECTION = """\
defaults gearbox
    mode tcp
    timeout connect 5s
    timeout client 3600s
    timeout server 3600s
listen gearbox from gearbox
    bind {address}{options}
    server ray 127.0.0.1:{port}
"""


def ray_host(host: str) -> str:
    """Where Ray's HAProxy and the replicas listen in a platform that is reached at `host`."""
    return "0.0.0.0" if host in ("0.0.0.0", "::") else "127.0.0.1"


def replica_host(host: str) -> str | None:
    """Where replicas are reached, if not on their node's address: those that listen on loopback alone."""
    return None if ray_host(host) == "0.0.0.0" else ray_host(host)


def listener(host: str, port: int) -> str | None:
    """HAProxy's configuration of a listener on `host`; None where Ray's own is one. Raises `OSError` for unknown names."""
    _, (address, *_) = socket_address(host, port)
    if address in ("0.0.0.0", "127.0.0.1"):
        return None
    options = " v6only" if address == "::" else ""  # Ray's own has IPv4
    return _SECTION.format(address=authority(address, port), options=options, port=port)
