"""Cross-origin protection for anonymous access: reject requests that another site's web page makes a browser send.

Where anonymous access is allowed, a browser on the same machine or network has access, and so has every page that it shows. A
request without a known key must therefore name this platform as its `Host` (against DNS rebinding), must not come from another
origin (against cross-site request forgery), and must declare a body type that requires a CORS preflight across sites.
"""

from serve.config.addresses import ANY_HOST, host_allowed
from serve.config.sections import ServerConfig
from serve.errors import RequestError
from serve.gateway.http import JSON, Headers


class CrossOriginProtection:
    """Checks requests without a key. Clients other than browsers send neither `Origin` nor `Sec-Fetch-Site`, and pass."""

    def __init__(self, server: ServerConfig) -> None:
        self._hosts = frozenset({server.host.lower(), *server.allowed_hosts})
        self._origins = frozenset(server.allowed_origins)

    def check(self, headers: Headers) -> None:
        """Raise `RequestError` 403 for another host or origin, 415 for a body that is not declared as JSON."""
        host = headers.get("host", "").lower()
        if host and not host_allowed(host, self._hosts):
            raise RequestError(
                403,
                f"the host '{host[:255]}' is not allowed without an API key; the operator can list it in "
                "'server.allowed_hosts'",
                param="host",
                code="host_not_allowed",
            )
        self._check_origin(host, headers)
        if "transfer-encoding" in headers or headers.get("content-length", "0") != "0":
            content_type = headers.get("content-type", "")
            if content_type.partition(";")[0].strip().lower() != JSON:
                raise RequestError(
                    415,
                    f"send the body with the header 'Content-Type: {JSON}', not '{content_type[:100]}'"
                    if content_type
                    else f"send the body with the header 'Content-Type: {JSON}'",
                    param="content-type",
                    code="unsupported_media_type",
                )

    def _check_origin(self, host: str, headers: Headers) -> None:
        if ANY_HOST in self._origins:
            return
        origin = headers.get("origin")
        if origin is None:  # browsers omit it when a page only loads a resource
            site, mode = headers.get("sec-fetch-site", "none"), headers.get("sec-fetch-mode", "")
            if site in ("none", "same-origin") or mode == "navigate":
                return
            origin = f"of a {site} page"
        elif origin.lower() in self._origins or (host and origin.lower().partition("://")[2] == host):
            return
        raise RequestError(
            403,
            f"the origin '{origin[:255]}' is not allowed without an API key; the operator can list it in "
            "'server.allowed_origins'",
            param="origin",
            code="origin_not_allowed",
        )
