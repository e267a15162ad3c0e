"""Listen addresses and URLs: host names, IPv4, and IPv6 with brackets."""

import re
import socket
from collections.abc import Collection
from ipaddress import ip_address
from typing import Any

ANY_HOST = "*"  # in `server.allowed_hosts` and `server.allowed_origins`
_EVERY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # wildcard addresses, and the loopback address that reaches them
_NAME = re.compile(r"(?=.*[A-Za-z])[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")


def listen_host(value: str) -> str:
    """Validate a listen host; IP addresses are returned in their shortest form. Raises `ValueError`."""
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
    """The URL of a listener on `host`, from its own machine."""
    return f"http://{authority(_EVERY.get(host, host), port)}"


def socket_address(host: str, port: int) -> tuple[socket.AddressFamily, tuple[Any, ...]]:
    """Socket family and address to listen on `host`; names prefer their IPv4 address. Raises `OSError`."""
    candidates = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = min(candidates, key=lambda info: info[0] != socket.AF_INET)
    return family, address


def host_allowed(host: str, allowed: Collection[str]) -> bool:
    """Whether a `Host` header, in lower case, is an IP address, a loopback name or one of the names in `allowed`.

    Addresses are always allowed: DNS rebinding needs a name, and probes of Kubernetes and load balancers use addresses.
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
    """Whether a listener on `host` is reachable only from this machine."""
    return host == "localhost" or (_is_address(host) and ip_address(host).is_loopback)


def _name_of(host: str) -> str:
    """The name or address in a `Host` header, without port, brackets and the trailing dot."""
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
