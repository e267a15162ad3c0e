"""The platform's configuration: one YAML file, loaded and validated across its sections before anything starts.

The sections are in `serve.config.sections` and `serve.config.retrieval`.
Any value can be overridden from the environment with `GEARBOX_` and `__` between levels,
e.g. `GEARBOX_SERVER__PORT=9000`.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from serve.budget import DEFAULT_PROFILES, Budget
from serve.config.engine_arguments import Arguments
from serve.config.environment import Environment, unknown_variable, variable_of
from serve.config.renamed import changes, find_renamed
from serve.config.retrieval import RetrievalConfig
from serve.config.sections import (
    AccessConfig,
    KeyConfig,
    ModelConfig,
    ObservabilityConfig,
    ServerConfig,
    VariantConfig,
)
from serve.config.yaml_file import YamlError, YamlFile, located_error, read_yaml
from serve.validation import first_problem, problem_path


class ConfigError(Exception):
    """A configuration that can't be used; the message is one line that says where and why."""


def _profile_name(value: str) -> str:
    if not _PROFILE.fullmatch(value):
        raise ValueError("requests name a profile as MODEL@PROFILE: a name has letters, digits, '.', '_' and '-' alone")
    return value


_PROFILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
ProfileName = Annotated[str, AfterValidator(_profile_name)]

RELOADED = {"profiles"}  # sections that a running platform reloads


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
        for path, change in find_renamed(data):
            raise located_error(f"this key was {change}", *path)
        return data

    @model_validator(mode="after")
    def _consistent(self) -> "PlatformConfig":
        names = [variant.name for variant in self.variants]
        for index, name in enumerate(names):
            if name in names[:index]:
                why = f"two variants are called '{name}'; names must be unique"
                raise located_error(why, "variants", index, "name")
        if "retrieval" in names and self.retrieval is not None:
            why = "'retrieval' is the name of the documents' part; give the variant another"
            raise located_error(why, "variants", names.index("retrieval"), "name")
        for profile, path in _profiles_used(self.access):
            if profile not in self.profiles:
                raise located_error(self._unknown_profile(profile), "access", *path)
        if (differing := _differing(self.access)) is not None:
            index, name, why = differing
            raise located_error(why, "access", "keys", index, name)
        if not self.access.allow_anonymous and not self.access.keys and self.access.keys_file is None:
            raise located_error(
                "there is no API key, so nobody could call; add keys, keys_file, or say 'allow_anonymous: true' explicitly",
                "access",
            )
        return self

    def _unknown_profile(self, profile: str) -> str:
        return f"unknown budget profile '{profile}'; there are {sorted(self.profiles)}"

    def engine_args(self, variant: VariantConfig) -> dict[str, object]:
        """vLLM engine arguments of `variant`: the common arguments, overridden by those of the variant."""
        return {**self.engine, **variant.engine}

    def serving_args(self, variant: VariantConfig) -> dict[str, object]:
        """All vLLM arguments of `variant` when it serves: scheduling by priority by default, `engine_args` and `frontend`.

        The scheduling policy is no part of `engine_args`: it changes nothing that a card states.
        """
        return {"scheduling_policy": "priority", **self.engine_args(variant), **self.frontend}

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
        if (differing := _differing(access)) is not None:
            raise ConfigError(f"access.keys_file: {differing[2]}")
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
    removed = {key: f"this key was {change}" for key, change in changes().items()}
    for key in (
        data.keys() - PlatformConfig.model_fields.keys()
    ):  # pydantic-settings would treat some as its own arguments
        raise ConfigError(f"{file.place((key,))}: {key}: {removed.get(key, 'Extra inputs are not permitted')}")
    if (unknown := unknown_variable(PlatformConfig.model_fields, removed)) is not None:
        variable, section = unknown
        raise ConfigError(f"{variable}: {removed.get(section, 'the configuration has no such section')}")
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


def reloaded_sections(running: PlatformConfig, path: Path) -> dict[str, object]:
    """The sections of the file at `path` that a platform with the configuration `running` reloads, as JSON values.

    Raises:
        ConfigError: the file is invalid, or these sections do not go with the others, which only a restart changes.
    """
    sections = load_config(path).model_dump(mode="json", include=RELOADED)
    try:
        PlatformConfig.model_validate({**running.model_dump(mode="json"), **sections}).with_file_keys()
    except ValidationError as error:
        raise ConfigError(f"{first_problem(error)}, as the platform was started; restart it to change that") from error
    return sections


def _origin(file: YamlFile, path: tuple[str | int, ...], below: bool = False) -> str:
    """Source of a configuration value: an environment variable, or a line of the file."""
    return variable_of(path, below) or file.place(path)


def _problem(file: YamlFile, error: ValidationError) -> str:
    below = error.errors(include_url=False)[0]["type"].endswith("_type")
    variable = variable_of(problem_path(error), below)
    return f"{variable}: {first_problem(error)}" if variable else file.problem(error)


def _differing(access: AccessConfig) -> tuple[int, str, str] | None:
    """The index of a key with another weight or limit than a key before of its tenant, the field's name, and what is wrong."""
    of_tenant: dict[tuple[str, str], float] = {}
    for index, key in enumerate(access.keys):
        for name in ("weight", "requests_per_minute", "tokens_per_minute"):
            value = getattr(key, name)  # without a limit, a key's requests are counted against none
            if value is not None and (other := of_tenant.setdefault((key.tenant, name), value)) != value:
                why = f"tenant '{key.tenant}' has '{name}: {other:g}' and '{name}: {value:g}'; give its keys the same"
                return index, name, why
    return None
