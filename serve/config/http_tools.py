"""Settings of operators' HTTP tools, which `serve/tools/http_tools.py` builds."""

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

_FRAMING = {"host", "content-length", "content-type", "transfer-encoding", "connection", "accept-encoding"}


def _host(value: str) -> str:
    if not re.fullmatch(r"(?:[a-z0-9]([a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:]+\])(?::\d{1,5})?", value.lower()):
        raise ValueError(f"'{value}' is not a host; write it like api.example.com or api.example.com:8443")
    return value.lower()


def _headers(value: dict[str, str]) -> dict[str, str]:
    for name, variable in value.items():
        if not re.fullmatch(r"[A-Za-z0-9-]+", name) or name.lower() in _FRAMING:
            raise ValueError(f"the header '{name}' cannot be set")
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", variable):
            raise ValueError(f"headers_env.{name} must name an environment variable")
    return value


class HttpToolConfig(BaseModel):
    """One service that models may call, by its OpenAPI description."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,31}$", description="the tools are called NAME_OPERATION")
    openapi_spec: str = Field(
        min_length=1, description="the service's OpenAPI 3 document, YAML or JSON: a path, or its text"
    )
    hosts: tuple[Annotated[str, AfterValidator(_host)], ...] = Field(
        min_length=1,
        description="the only hosts that may be called, written exactly so; with the port where it is not the default one",
    )
    timeout_s: float = Field(default=10, gt=0, le=120, description="longest call, from connecting to the last byte")
    headers_env: Annotated[dict[str, str], AfterValidator(_headers)] = Field(
        default_factory=dict,
        description="request headers to send, and the environment variables that hold their values",
    )
    operations: tuple[str, ...] | None = Field(
        default=None, description="operationIds that become tools; by default all GET operations"
    )
