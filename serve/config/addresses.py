"""Addresses to listen on and URLs to reach them: host names, IPv4, and IPv6 with its brackets."""

import re
import socket
from collections.abc import Collection
from ipaddress import ip_address
from typing import Any

ANY_HOST = "*"  # in `server.allowed_hosts` and `server.allowed_origins`
_EVERY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # all of a machine's addresses, and the one to reach them from itself
_NAME = re.compile(r"(?=.*[A-Za-z])[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")


def listen_host(value: str) -> str:
    """A host that can be listened on, an IP address in its shortest form. Raises `ValueError`."""
    try:
        address = ip_address(value[1:-1] if value.startswith("[") and value.endswith("]") else value)
    except ValueError as error:
        if _NAME.fullmatch(value) and len(value) <= 253:
            return value
        raise ValueError(
            f"'{value}' is neither an address nor a host name: write 127.0.0.1, '::1' or host.example.com, "
            "without scheme and port"
        ) from error
    if address.version == 4:
        return str(address)
    if address.scope_id:
        raise ValueError(f"'{value}' is an address of one network interface (%); use one without, or '::'")
    return str(address.ipv4_mapped or address)


def authority(host: str, port: int) -> str:
    """`HOST:PORT`, as in a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def local_url(host: str, port: int) -> str:
    """Where what listens on `host` is reached from its own machine."""
    return f"http://{authority(_EVERY.get(host, host), port)}"


def socket_address(host: str, port: int) -> tuple[socket.AddressFamily, tuple[Any, ...]]:
    """Family and address of a socket that listens on `host`; of a name, its IPv4 address if it has one. Raises `OSError`."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = min(found, key=lambda info: info[0] != socket.AF_INET)
    return family, address


def host_allowed(host: str, allowed: Collection[str]) -> bool:
    """Whether a `Host` header, in lower case, names a platform that also answers to the names in `allowed`.

    An address always does: DNS rebinding takes a name. Probes of Kubernetes and load balancers come with one.
    """
    name = _name_of(host)
    if (
        name in allowed
        or ANY_HOST in allowed
        or name == "localhost"
        or name.endswith(".localhost")
        or _is_address(name)
    ):
        return True
    return any(name.endswith(pattern[1:]) for pattern in allowed if pattern.startswith("*."))


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a listener on `host`."""
    return host == "localhost" or (_is_address(host) and ip_address(host).is_loopback)


def _name_of(host: str) -> str:
    """The header's name or address without port, brackets, and the dot of a fully qualified name."""
    if host.startswith("["):
        address, bracket, port = host[1:].partition("]")
        return address if bracket and (not port or port.startswith(":")) else host
    return host.partition(":")[0].removesuffix(".")


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
