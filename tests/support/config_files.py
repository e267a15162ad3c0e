"""Small configurations, and the errors of invalid ones."""

import re
from pathlib import Path
from typing import Any

import pytest

from serve.config.platform import ConfigError, load_config

KEY = {"sha256": "a" * 64, "tenant": "acme"}


def problem(path: Path) -> str:
    """What is wrong with the configuration at `path`, without the place in the file."""
    message = load_error(path)
    found = re.fullmatch(rf"{re.escape(str(path))}(?::\d+:\d+)?: (.*)", message)
    assert found, message
    return found[1]


def load_error(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


def variant(**fields: Any) -> dict[str, Any]:
    return {"variants": [{"name": "full", "recipe": "full", **fields}]}


def error_of_text(tmp_path: Path, text: str) -> str:
    """What is wrong with a configuration of this text, after the file's path."""
    file = tmp_path / "platform.yaml"
    file.write_text(text)
    return load_error(file).removeprefix(f"{file}:")


MINIMAL = """\
model: {name: m, source: x}
access: {allow_anonymous: true}
variants:
- name: full
  recipe: full
"""
