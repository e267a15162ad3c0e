"""The configuration file: everything wrong with it is one line that names the place, before anything starts."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve.budget import DEFAULT_PROFILES, Budget
from serve.config import ConfigError, load_config
from tests.catalog import MODEL, make_config, settings

ROOT = Path(__file__).parents[2]
KEY = {"sha256": "a" * 64, "tenant": "acme"}
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a configuration with some sections replaced; returns its path."""

    def to_file(**changes: Any) -> Path:
        file = tmp_path / "platform.yaml"
        file.write_text(yaml.safe_dump(settings(**changes)))
        return file

    return to_file


def problem(path: Path) -> str:
    """What is wrong with the configuration at `path`, without the place in the file."""
    message = refused(path)
    found = re.fullmatch(rf"{re.escape(str(path))}(?::\d+:\d+)?: (.*)", message)
    assert found, message
    return found[1]


def refused(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


def variant(**fields: Any) -> dict[str, Any]:
    return {"variants": [{"name": "full", "recipe": "full", **fields}]}


def test_a_minimal_file_is_enough(write):
    config = load_config(write())
    assert config.model.name == MODEL
    assert [variant.name for variant in config.variants] == ["full", "int8", "distilled"]
    assert (config.server.host, config.server.port) == ("127.0.0.1", 8000)
    assert config.profiles == dict(DEFAULT_PROFILES)


@pytest.mark.parametrize("file", ["local.yaml", "gpu.yaml"])
def test_the_shipped_configurations_are_valid(file, tmp_path, monkeypatch):
    keys = tmp_path / "keys.yaml"
    keys.write_text(yaml.safe_dump([KEY]))
    if file == "gpu.yaml":
        monkeypatch.setenv("GEARBOX_ACCESS__KEYS_FILE", str(keys))
    assert load_config(ROOT / "deployments" / file).variants


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"colour": "red"}, "colour"),
        ({"model": {"name": MODEL, "source": "x", "colour": "red"}}, "model.colour"),
        ({"server": {"colour": "red"}}, "server.colour"),
        ({"access": {"open": True, "colour": "red"}}, "access.colour"),
        ({"access": {"keys": [{**KEY, "colour": "red"}]}}, "access.keys.0.colour"),
        ({"profiles": {"mine": {"colour": "red"}}}, "profiles.mine.colour"),
        (variant(colour="red"), "variants.0.colour"),
        (variant(replicas={"colour": "red"}), "variants.0.replicas.colour"),
        (variant(resources={"colour": "red"}), "variants.0.resources.colour"),
    ],
)
def test_an_unknown_key_is_named_at_every_level(write, changes, place):
    assert problem(write(**changes)).startswith(f"{place}: Extra inputs are not permitted")


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"model": None}, "model"),
        ({"model": {"name": MODEL}}, "model.source"),
        ({"model": {"name": "Has:Colon", "source": "x"}}, "model.name"),
        ({"model": {"name": "has@at", "source": "x"}}, "model.name"),
        ({"server": {"port": 0}}, "server.port"),
        ({"server": {"port": "http"}}, "server.port"),
        ({"server": {"max_body_bytes": 10}}, "server.max_body_bytes"),
        ({"server": {"request_timeout_s": 0}}, "server.request_timeout_s"),
        ({"server": {"max_waiting_per_replica": -1}}, "server.max_waiting_per_replica"),
        ({"profiles": {"mine": {"ttft_ms": -1}}}, "profiles.mine.ttft_ms"),
        ({"profiles": {"mine": {"objective": "speed"}}}, "profiles.mine.objective"),
        ({"access": {"keys": [{**KEY, "sha256": "plain-key"}]}}, "access.keys.0.sha256"),
        ({"access": {"keys": [{**KEY, "tenant": "Not A Name"}]}}, "access.keys.0.tenant"),
        ({"access": {"keys": [KEY, {**KEY, "requests_per_minute": 0}]}}, "access.keys.1.requests_per_minute"),
        (variant(name="Full Model"), "variants.0.name"),
        (variant(name="a:b"), "variants.0.name"),
        (variant(price_usd_per_hour=-1), "variants.0.price_usd_per_hour"),
        (variant(replicas={"max": 0}), "variants.0.replicas.max"),
        (variant(env={"THREADS": [2]}), "variants.0.env.THREADS"),
        ({"variants": [{"recipe": "full"}]}, "variants.0.name"),
        ({"variants": "full"}, "variants"),
    ],
)
def test_a_wrong_value_is_named(write, changes, place):
    assert problem(write(**changes)).startswith(f"{place}: ")


def test_two_variants_of_one_name_are_refused(write):
    twice = [{"name": "full", "recipe": "full"}, {"name": "full", "recipe": "int8"}]
    assert "two variants are called 'full'" in problem(write(variants=twice))


def test_no_variants_are_refused(write):
    assert problem(write(variants=[])).startswith("variants: ")


@pytest.mark.parametrize("origin", [{}, {"recipe": "full", "weights": "/weights"}, {"recipe": None}])
def test_weights_come_from_exactly_one_place(write, origin):
    message = problem(write(variants=[{"name": "full", **origin}]))
    assert message.startswith("variants.0: ")
    assert "'full' needs exactly one of 'recipe' and 'weights'" in message


def test_replica_bounds_are_in_order(write):
    message = problem(write(**variant(replicas={"min": 3, "max": 2})))
    assert message.startswith("variants.0.replicas: ")
    assert "min (3) is larger than max (2)" in message


@pytest.mark.parametrize("access", [{"open": True, "open_budget": "turbo"}, {"keys": [{**KEY, "budget": "turbo"}]}])
def test_an_unknown_profile_is_refused_with_those_there_are(write, access):
    message = problem(write(access=access))
    assert "unknown budget profile 'turbo'" in message
    assert "balanced" in message


def test_a_key_may_name_an_operators_own_profile(write):
    config = load_config(write(access={"keys": [{**KEY, "budget": "turbo"}]}, profiles={"turbo": {"ttft_ms": 50}}))
    assert config.profiles["turbo"] == Budget(ttft_ms=50)
    assert config.profiles["fast"] == DEFAULT_PROFILES["fast"]


def test_a_built_in_profile_can_be_replaced(write):
    assert load_config(write(profiles={"fast": {"ttft_ms": 50}})).profiles["fast"] == Budget(ttft_ms=50)


@pytest.mark.parametrize("access", [{}, {"open": False}, {"keys": []}])
def test_a_platform_that_nobody_could_call_is_refused(write, access):
    message = problem(write(access=access))
    assert "nobody could call" in message
    assert "open: true" in message


def test_one_port_cannot_be_listened_on_twice(write):
    assert "port" in problem(write(server={"port": 9000, "metrics_port": 9000}))


@pytest.mark.parametrize("store", ["memory://", "async+nosuch://", "redis"])
def test_a_limits_store_that_cannot_be_used_is_refused(write, store):
    assert "limits_store" in problem(write(access={"open": True, "limits_store": store}))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "expected a mapping"),
        ("# only a comment\n", "expected a mapping"),
        ("- a\n- b\n", "expected a mapping"),
        ("just text", "expected a mapping"),
        ("model: {name: x", "not valid YAML"),
        ("model:\n\t- x", "not valid YAML"),
        ("a: b: c", "not valid YAML"),
        ("model: !!python/object/apply:os.system ['true']", "not valid YAML"),
        ("1: x", ""),
    ],
)
def test_a_file_that_is_no_yaml_mapping_is_refused(tmp_path, content, says):
    file = tmp_path / "platform.yaml"
    file.write_text(content)
    assert says in problem(file)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    file = tmp_path / "platform.yaml"
    file.write_bytes(b"\xff\xfe\x80binary")
    problem(file)


def test_a_missing_file_is_named(tmp_path):
    assert problem(tmp_path / "nowhere.yaml") == "No such file or directory"
    assert problem(tmp_path) == "Is a directory"


def test_the_environment_wins_over_the_file(write, monkeypatch):
    monkeypatch.setenv("GEARBOX_SERVER__PORT", "9000")
    config = load_config(write(server={"port": 8080, "max_body_bytes": 2048}))
    assert (config.server.port, config.server.max_body_bytes) == (9000, 2048)


def test_the_environment_reaches_what_the_file_leaves_out(write, monkeypatch):
    monkeypatch.setenv("GEARBOX_SERVER__HOST", "0.0.0.0")
    monkeypatch.setenv("GEARBOX_ACCESS__OPEN", "true")
    config = load_config(write(access={}))
    assert config.server.host == "0.0.0.0"
    assert config.access.open


def test_a_wrong_value_in_the_environment_is_named(write, monkeypatch):
    monkeypatch.setenv("GEARBOX_SERVER__PORT", "many")
    assert refused(write(server={"port": 9000})).startswith("GEARBOX_SERVER__PORT: server.port: ")


@pytest.mark.parametrize(("name", "text"), [("GEARBOX_VARIANTS", "full,int8"), ("GEARBOX_ENGINE", "{oops")])
def test_an_environment_value_that_cannot_be_read_is_one_line_too(write, monkeypatch, name, text):
    monkeypatch.setenv(name, text)
    assert refused(write()).startswith(f"{name}: ")


def test_the_commands_own_variables_are_no_configuration(write, monkeypatch):
    for name in ("GEARBOX_URL", "GEARBOX_API_KEY", "GEARBOX_CONFIG", "GEARBOX_RUN_ID", "GEARBOX_STATE_DIR"):
        monkeypatch.setenv(name, "x")
    load_config(write())


def test_keys_from_a_file_are_added_to_those_in_the_configuration(write, tmp_path):
    file = tmp_path / "keys.yaml"
    file.write_text(yaml.safe_dump([{"sha256": "b" * 64, "tenant": "other"}]))
    config = load_config(write(access={"keys": [KEY], "keys_file": str(file)}))
    assert [key.tenant for key in config.access.keys] == ["acme"]
    assert [key.tenant for key in config.with_file_keys().access.keys] == ["acme", "other"]
    file.write_text(yaml.safe_dump([{"sha256": "c" * 64, "tenant": "third"}]))
    assert [key.tenant for key in config.with_file_keys().access.keys] == ["acme", "third"]


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


def test_only_some_variants_can_be_chosen_in_any_order():
    assert [v.name for v in make_config().only(["int8", "full"]).variants] == ["int8", "full"]


def test_an_unknown_variant_cannot_be_chosen():
    with pytest.raises(ConfigError, match="unknown variant 'int4'; the configuration has full, int8, distilled"):
        make_config().only(["full", "int4"])


def test_a_variant_chosen_twice_is_there_once():
    assert [v.name for v in make_config().only(["full", "full"]).variants] == ["full"]


def test_a_variants_engine_arguments_win_over_the_common_ones():
    config = make_config(engine={"max_model_len": 2048, "max_num_seqs": 8}, **variant(engine={"max_num_seqs": 2}))
    assert config.engine_args(config.variants[0]) == {"max_model_len": 2048, "max_num_seqs": 2}
