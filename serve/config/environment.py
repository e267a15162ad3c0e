"""Configuration overrides from environment variables: `GEARBOX_`, then the keys joined by `__`."""

import json
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_settings import EnvSettingsSource

from serve.config.yaml_file import parse_yaml

PREFIX, BETWEEN = "GEARBOX_", "__"
_FREE = ("engine", "frontend", "env")  # sections with free keys: engine arguments, environment variables


class Environment(EnvSettingsSource):
    """Settings source that supports sections with free keys: variable names keep their case, values are parsed as YAML."""

    def explode_env_vars(self, field_name: str, field: FieldInfo, env_vars: Mapping[str, str | None]) -> dict[str, Any]:
        """Build a section from its `GEARBOX_SECTION__KEY` variables; called by pydantic-settings. Raises `YamlError`."""
        if field_name not in _FREE:
            return super().explode_env_vars(field_name, field, env_vars)
        section: dict[str, Any] = {}
        start = f"{PREFIX}{field_name}{BETWEEN}".upper()
        for variable, text in os.environ.items():
            if not variable.upper().startswith(start):
                continue
            name = variable[len(start) :]
            if field_name == "env":
                section[name] = text
                continue
            *above, last = name.lower().split(BETWEEN)
            inner = section
            for key in above:
                inner = inner.setdefault(key, {})
            inner[last] = parse_yaml(text, variable).data
        return section

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        """Parse the JSON of a whole section or list; called by pydantic-settings. Errors name the variable."""
        try:
            return super().decode_complex_value(field_name, field, value)
        except ValueError as error:
            names = [name for name, text in os.environ.items() if text == value and name.upper().startswith(PREFIX)]
            raise ValueError(f"{names[0] if names else field_name}: not valid JSON: {error}") from error


def variable_of(path: Sequence[str | int], below: bool = False) -> str | None:
    """The variable that sets the value at `path` in the configuration, or, with `below`, a part of that value."""
    names = {name.upper(): name for name in os.environ if name.upper().startswith(PREFIX)}
    for end in range(len(path), 0, -1):
        variable = names.get((PREFIX + BETWEEN.join(map(str, path[:end]))).upper())
        if variable and _holds(os.environ[variable], path[end:]):
            return variable
    start = (PREFIX + BETWEEN.join(map(str, path)) + BETWEEN).upper()
    return next((name for upper, name in names.items() if below and path and upper.startswith(start)), None)


def unknown_variable(sections: Collection[str], removed: Collection[str]) -> tuple[str, str] | None:
    """A variable for a section that is `removed` or in no `sections`, most likely a typing error, and that section."""
    for name in os.environ:
        section, between, _ = name.lower().removeprefix(PREFIX.lower()).partition(BETWEEN)
        if name.upper().startswith(PREFIX) and (section in removed or (between and section not in sections)):
            return name, section
    return None


def _holds(text: str, path: Sequence[str | int]) -> bool:
    """Whether the JSON `text` has a value at `path`."""
    if not path:
        return True
    try:
        value = json.loads(text)
        for part in path:
            value = value[part]
    except (ValueError, LookupError, TypeError):
        return False
    return True
