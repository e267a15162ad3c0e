"""Patterns of the phrases in `phrases.yaml`, of all its languages together."""

from importlib.resources import files

import yaml

_BY_LANGUAGE: dict[str, dict[str, str]] = yaml.safe_load(files(__package__).joinpath("phrases.yaml").read_text("utf-8"))


def phrases(kind: str) -> str:
    """A regular expression of all phrases of a kind, to be matched without regard to case. A language may have none."""
    return f"(?:{'|'.join(of[kind] for of in _BY_LANGUAGE.values() if kind in of)})"
