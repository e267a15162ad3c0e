"""Fixtures of the configuration's tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.lib.sample_catalog import settings

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a configuration with some sections replaced; returns its path."""

    def to_file(**changes: Any) -> Path:
        file = tmp_path / "platform.yaml"
        file.write_text(yaml.safe_dump(settings(**changes)))
        return file

    return to_file
