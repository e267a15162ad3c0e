"""The file with API keys: added to those in the configuration, read again, and its errors."""

import pytest
import yaml

from serve.config.platform import ConfigError, load_config, reloaded_sections
from tests.support.config_files import KEY, MINIMAL, error_of_text, problem


def test_keys_from_a_file_are_added_to_those_in_the_configuration(write, tmp_path):
    file = tmp_path / "keys.yaml"
    file.write_text(yaml.safe_dump([{"sha256": "b" * 64, "tenant": "other"}]))
    config = load_config(write(access={"keys": [KEY], "keys_file": str(file)}))
    assert [key.tenant for key in config.access.keys] == ["acme"]
    assert [key.tenant for key in config.with_file_keys().access.keys] == ["acme", "other"]
    file.write_text(yaml.safe_dump([{"sha256": "c" * 64, "tenant": "third"}]))
    assert [key.tenant for key in config.with_file_keys().access.keys] == ["acme", "third"]


def test_profiles_are_not_reloaded_where_a_key_of_the_running_platforms_file_needs_another(write, tmp_path):
    file = tmp_path / "keys.yaml"
    file.write_text(yaml.safe_dump([{"sha256": "b" * 64, "tenant": "other", "budget": "mine"}]))
    running = load_config(write(access={"keys_file": str(file)}, profiles={"mine": {"ttft_ms": 100}}))
    assert "mine" in reloaded_sections(running, write(access={"keys": [KEY]}, profiles={"mine": {}}))["profiles"]
    with pytest.raises(ConfigError, match="unknown budget profile 'mine'"):
        reloaded_sections(running, write(access={"keys": [KEY]}))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("- {sha256: short, tenant: acme}", "sha256"),
        (f"- {{sha256: {'a' * 64}, tenant: acme, budget: turbo}}", "unknown budget profile 'turbo'"),
        ("- [unfinished", "keys.yaml"),
        ("5", ""),
        ("tenant: acme", "keys"),
    ],
)
def test_a_wrong_keys_file_is_refused(write, tmp_path, content, says):
    file = tmp_path / "keys.yaml"
    file.write_text(content)
    assert says in problem(write(access={"keys_file": str(file)}))


def test_a_missing_keys_file_is_named(write, tmp_path):
    assert "nowhere.yaml" in problem(write(access={"keys_file": str(tmp_path / "nowhere.yaml")}))


@pytest.mark.parametrize("content", ["", "[]"])
def test_an_empty_keys_file_leaves_nobody_who_could_call(write, tmp_path, content):
    file = tmp_path / "keys.yaml"
    file.write_text(content)
    assert "nobody could call" in problem(write(access={"keys_file": str(file)}))


def test_a_wrong_keys_file_names_both_places(tmp_path):
    keys = tmp_path / "keys.yaml"
    keys.write_text(f"- {{sha256: {'a' * 64}, tenant: acme}}\n- sha256: {'b' * 64}\n  tenant: acme\n  budget: turbo\n")
    message = error_of_text(
        tmp_path, MINIMAL.replace("allow_anonymous: true", f"allow_anonymous: true, keys_file: {keys}")
    )
    assert message.startswith(f"2:33: access.keys_file: {keys}:4:3: 1.budget: unknown budget profile 'turbo'")
    keys.write_text(f"- sha256: {'a' * 64}\n  tenant: acme\n  tenant: other\n")
    assert f"{keys}:3:3: 0.tenant: the key is there twice" in error_of_text(
        tmp_path, MINIMAL.replace("allow_anonymous: true", f"keys_file: {keys}")
    )


def test_all_keys_of_a_tenant_state_the_same_weight(write, tmp_path):
    second = {"sha256": "b" * 64, "tenant": "acme", "weight": 3}
    says = "tenant 'acme' has 'weight: 1' and 'weight: 3'"
    assert says in problem(write(access={"keys": [KEY, second]}))
    file = tmp_path / "keys.yaml"
    file.write_text(yaml.safe_dump([second]))
    config = load_config(write(access={"keys": [{**KEY, "weight": 3}], "keys_file": str(file)}))
    assert [key.weight for key in config.with_file_keys().access.keys] == [3, 3]
    with pytest.raises(ConfigError, match=says):
        load_config(write(access={"keys": [KEY], "keys_file": str(file)})).with_file_keys()


@pytest.mark.parametrize("limit", ["requests_per_minute", "tokens_per_minute"])
def test_all_keys_of_a_tenant_state_the_same_limit_or_none(write, limit):
    """One count is kept for a tenant."""
    keys = [{"sha256": digit * 64, "tenant": "acme", limit: 60} for digit in "ab"]
    load_config(write(access={"keys": [KEY, *keys]}))
    keys[1][limit] = 600
    says = f"access.keys.2.{limit}: tenant 'acme' has '{limit}: 60' and '{limit}: 600'; give its keys the same"
    assert says in problem(write(access={"keys": [KEY, *keys]}))
    load_config(write(access={"keys": [*keys[:1], {**keys[1], "tenant": "other"}]}))
