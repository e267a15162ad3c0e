"""Renamed and removed keys: using one is an error that names its replacement."""

from pathlib import Path

import pytest

from serve.config.platform import PlatformConfig
from serve.config.renamed import REMOVED, RENAMED, RENAMED_COMMANDS, changes
from tests.support.config_files import MINIMAL, error_of_text, load_error


@pytest.mark.parametrize("old", [*RENAMED, *REMOVED])
def test_a_renamed_or_removed_key_names_its_replacement(tmp_path, old):
    *sections, key = old.split(".")
    text = MINIMAL.replace("access: {allow_anonymous: true}\n", "")
    for depth, name in enumerate(sections):
        text += "  " * depth + (f"{name[:-2]}:\n" + "  " * depth + "-\n" if name.endswith("[]") else f"{name}:\n")
    text += "  " * len(sections) + f"{key}: x\n"
    place = old.replace("[]", ".0")
    assert error_of_text(tmp_path, text).endswith(f": {place}: this key was {changes()[old]}")


@pytest.mark.parametrize("new", RENAMED.values())
def test_what_replaces_a_renamed_key_is_one(new):
    schema = PlatformConfig.model_json_schema()
    part = schema
    for name in new.split("."):
        part = part["properties"][name.removesuffix("[]")]
        part = part.get("items", part)
        for each in (part, *part.get("anyOf", ())):
            if "$ref" in each:
                part = schema["$defs"][each["$ref"].rpartition("/")[2]]


def test_a_removed_key_names_a_page_that_exists():
    root = Path(__file__).parents[3]
    for instead in REMOVED.values():
        assert (root / instead.rpartition(" see ")[2]).is_file()


def test_the_page_about_upgrading_lists_changed_keys_and_commands():
    page = (Path(__file__).parents[3] / "docs/operations/upgrading.md").read_text()
    for old, new in RENAMED.items():
        assert f"| `{old}` | `{new}` |" in page
    for old in REMOVED:
        assert f"| `{old}` | removed: " in page
    for old, new in RENAMED_COMMANDS.items():
        assert f"`gearbox {old} " in page and f"`gearbox {new} " in page


def test_a_renamed_key_in_the_environment_names_the_variable_and_the_replacement(write, monkeypatch):
    monkeypatch.setenv("GEARBOX_ACCESS__OPEN", "true")
    expected = "GEARBOX_ACCESS__OPEN: access.open: this key was renamed to access.allow_anonymous"
    assert load_error(write()) == expected
    monkeypatch.delenv("GEARBOX_ACCESS__OPEN")
    monkeypatch.setenv("GEARBOX_SERVER", '{"drain_s": 5}')
    assert load_error(write()) == "GEARBOX_SERVER: server.drain_s: this key was renamed to server.drain_timeout_s"


@pytest.mark.parametrize(
    ("name", "text"), [("GEARBOX_ROUTER__POLICY", "full"), ("GEARBOX_ROUTER", '{"policy": "full"}')]
)
def test_a_removed_section_in_the_environment_is_an_error(write, monkeypatch, name, text):
    monkeypatch.setenv(name, text)
    assert load_error(write()) == f"{name}: this key was removed: {REMOVED['router']}"
