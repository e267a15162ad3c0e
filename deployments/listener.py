"""Listen addresses: the address Ray listens on, and an additional HAProxy listener for addresses Ray cannot use.

Ray's HAProxy reaches the replicas of its own machine at 127.0.0.1, and takes `::` for all IPv4 addresses. So Ray always
listens on an IPv4 address, and a second configuration file of the same HAProxy forwards connections from any other one.
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
    """Address on which Ray's HAProxy and the replicas listen when `server.host` is `host`."""
    return "0.0.0.0" if host in ("0.0.0.0", "::") else "127.0.0.1"


def replica_host(host: str) -> str | None:
    """Address at which the gateway reaches replicas that listen on loopback only; None for their node's address."""
    return None if ray_host(host) == "0.0.0.0" else ray_host(host)


def listener(host: str, port: int) -> str | None:
    """HAProxy configuration of a listener on `host`; None where Ray itself listens there. Raises `OSError` for unknown names."""
    _, (address, *_) = socket_address(host, port)
    if address in ("0.0.0.0", "127.0.0.1"):
        return None
    options = " v6only" if address == "::" else ""  # Ray listens on IPv4
    return _SECTION.format(address=authority(address, port), options=options, port=port)
