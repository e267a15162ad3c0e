"""The configuration file: each error is one line that names its place, before anything starts."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.lib.sample_catalog import MODEL, make_config, settings
from deployments.ray_internals import ray_environment
from serve.budget import DEFAULT_PROFILES, Budget
from serve.config.platform import ConfigError, PlatformConfig, load_config
from serve.config.renamed import RENAMED, RENAMED_COMMANDS
from serve.request.call import ModelRef

ROOT = Path(__file__).parents[3]
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
        ({"access": {"allow_anonymous": True, "colour": "red"}}, "access.colour"),
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
        ({"server": {"stream_idle_timeout_s": 0}}, "server.stream_idle_timeout_s"),
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


@pytest.mark.parametrize(
    "access", [{"allow_anonymous": True, "anonymous_profile": "turbo"}, {"keys": [{**KEY, "budget": "turbo"}]}]
)
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


@pytest.mark.parametrize("access", [{}, {"allow_anonymous": False}, {"keys": []}])
def test_a_platform_that_nobody_could_call_is_refused(write, access):
    message = problem(write(access=access))
    assert "nobody could call" in message
    assert "allow_anonymous: true" in message


def test_one_port_cannot_be_listened_on_twice(write):
    assert "port" in problem(write(server={"port": 9000, "metrics_port": 9000}))


@pytest.mark.parametrize("store", ["memory://", "async+nosuch://", "redis"])
def test_a_limits_store_that_cannot_be_used_is_refused(write, store):
    assert "rate_limit_store" in problem(write(access={"allow_anonymous": True, "rate_limit_store": store}))


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
    monkeypatch.setenv("GEARBOX_ACCESS__ALLOW_ANONYMOUS", "true")
    config = load_config(write(access={}))
    assert config.server.host == "0.0.0.0"
    assert config.access.allow_anonymous


@pytest.mark.parametrize("old", RENAMED)
def test_a_renamed_key_names_its_replacement(tmp_path, old):
    *sections, key = old.split(".")
    text = TEXT.replace("access: {allow_anonymous: true}\n", "")
    for depth, name in enumerate(sections):
        text += "  " * depth + (f"{name[:-2]}:\n" + "  " * depth + "-\n" if name.endswith("[]") else f"{name}:\n")
    text += "  " * len(sections) + f"{key}: x\n"
    place = old.replace("[]", ".0")
    assert at(tmp_path, text).endswith(f": {place}: this key was renamed to {RENAMED[old]}")


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


def test_the_page_about_upgrading_lists_renamed_keys_and_commands():
    page = (ROOT / "docs/upgrading.md").read_text()
    for old, new in RENAMED.items():
        assert f"| `{old}` | `{new}` |" in page
    for old, new in RENAMED_COMMANDS.items():
        assert f"`gearbox {old} " in page and f"`gearbox {new} " in page


def test_a_renamed_key_in_the_environment_names_the_variable_and_the_replacement(write, monkeypatch):
    monkeypatch.setenv("GEARBOX_ACCESS__OPEN", "true")
    told = "GEARBOX_ACCESS__OPEN: access.open: this key was renamed to access.allow_anonymous"
    assert refused(write()) == told
    monkeypatch.delenv("GEARBOX_ACCESS__OPEN")
    monkeypatch.setenv("GEARBOX_SERVER", '{"drain_s": 5}')
    assert refused(write()) == "GEARBOX_SERVER: server.drain_s: this key was renamed to server.drain_timeout_s"


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


def at(tmp_path: Path, text: str) -> str:
    """What is wrong with a configuration of this text, after the file's path."""
    file = tmp_path / "platform.yaml"
    file.write_text(text)
    return refused(file).removeprefix(f"{file}:")


TEXT = """\
model: {name: m, source: x}
access: {allow_anonymous: true}
variants:
- name: full
  recipe: full
"""


@pytest.mark.parametrize(
    ("more", "starts"),
    [
        ("colour: red\n", "6:1: colour: Extra inputs are not permitted"),
        ("_env_file: /etc/environment\n", "6:1: _env_file: Extra inputs are not permitted"),
        ("_case_sensitive: true\n", "6:1: _case_sensitive: Extra inputs are not permitted"),
        ("- name: int8\n  recipe: int8\n  colour: red\n", "8:3: variants.1.colour: Extra inputs"),
        ("- name: full\n  recipe: int8\n", "6:3: variants.1.name: two variants are called 'full'"),
        ("- name: int8\n", "6:3: variants.1: "),
        ("- {name: int8, recipe: ''}\n", "6:16: variants.1.recipe: it is empty"),
        ("- {name: int8, weights: ''}\n", "6:16: variants.1.weights: it is empty"),
        ("- name: int8\n  recipe: int8\n  price_usd_per_hour: .nan\n", "8:23: variants.1.price_usd_per_hour: .nan is"),
        ("- name: int8\n  recipe: int8\n  price_usd_per_hour: inf\n", "8:3: variants.1.price_usd_per_hour: Input"),
        ("- {name: retrieval, recipe: x}\nretrieval: {}\n", "6:4: variants.1.name: 'retrieval' is the name of"),
        ("server:\n  port: 8000\n  port: 8001\n", "8:3: server.port: the key is there twice, first in line 7"),
        ("server:\n  port: 010\n", "7:9: server.port: 010 is one number"),
        ("server:\n  port: 22:22\n", "7:9: server.port: 22:22 is one number"),
        ("server:\n  port: true\n", "7:3: server.port: expected a number, got true or false"),
        ("server:\n  port: on\n", "7:3: server.port: Input should be a valid integer"),
        ("server:\n  drain_timeout_s: true\n", "7:3: server.drain_timeout_s: expected a number, got true or false"),
        (
            "retrieval:\n  verification_timeout_s: infinity\n",
            "7:3: retrieval.verification_timeout_s: Input should be a finite number",
        ),
        ("retrieval:\n  top_k: yes\n", "7:3: retrieval.top_k: "),
        ("router:\n  confidence: 0.5x\n", "7:3: router.confidence: "),
        ("engine:\n  a: {b: [1, no]}\n", "7:14: engine.a.b.1: 'no' is true or false in YAML 1.1"),
        ("engine:\n  1: x\n", "7:3: engine.1"),
        ("engine:\n  a:\n    2: x\n", "7:3: engine.a: the name 2 must be text"),
        ("frontend:\n  x: .inf\n", "7:6: frontend.x: .inf is not a finite number"),
        ("env:\n  OMP_NUM_THREADS: 2\n", "7:3: env.OMP_NUM_THREADS: Input should be a valid string; text that looks"),
        ("profiles:\n  mine:\n    ttft_ms: -1\n", "8:5: profiles.mine.ttft_ms: "),
        ("profiles:\n  mine: {ttft_ms: nan}\n", "7:10: profiles.mine.ttft_ms: Input should be"),
        ("profiles:\n  mine: {max_cost: -0.5}\n", "7:10: profiles.mine.max_cost: "),
        ("profiles:\n  mine: {min_quality: nan}\n", "7:10: profiles.mine.min_quality: "),
    ],
)
def test_the_message_points_to_the_line_and_names_the_key(tmp_path, more, starts):
    assert at(tmp_path, TEXT + more).startswith(starts)


@pytest.mark.parametrize("name", ["", "a+b", "a@b", "a:b", "a b", " a", "é", "a/b", "-a", "a" * 64])
def test_a_profile_that_no_request_could_name_is_refused(write, name):
    message = problem(write(profiles={name: {}}))
    assert message.startswith(f"profiles.{name}.[key]: ")
    assert "MODEL@PROFILE" in message


@pytest.mark.parametrize("name", ["fast2", "Fast", "v1.5", "a_b-c", "no", "010"])
def test_a_profiles_name_means_what_it_says(write, name):
    assert load_config(write(profiles={name: {"ttft_ms": 50}})).profiles[name] == Budget(ttft_ms=50)
    ref = ModelRef.parse(f"{MODEL}@{name}+manuals")
    assert (ref.model, ref.profile, ref.collection) == (MODEL, name, "manuals")


def test_words_that_look_like_booleans_are_text_where_text_is_wanted(tmp_path):
    (tmp_path / "keys.yaml").write_text(f"- {{sha256: {'a' * 64}, tenant: no, budget: off}}")
    file = tmp_path / "platform.yaml"
    file.write_text(
        "model: {name: on, source: yes}\naccess: {allow_anonymous: yes, keys_file: "
        + str(tmp_path / "keys.yaml")
        + "}\n"
        "variants: [{name: no, recipe: off}]\nprofiles: {off: {ttft_ms: 5}}\nenv: {DEBUG: off, no: yes}\n"
        "observability: {log_requests: off}\n"
    )
    config = load_config(file)
    assert (config.model.name, config.model.source, config.variants[0].name) == ("on", "yes", "no")
    assert config.access.allow_anonymous and not config.observability.log_requests
    assert config.profiles["off"] == Budget(ttft_ms=5)
    assert config.env == {"DEBUG": "off", "no": "yes"}
    assert config.with_file_keys().access.keys[0].tenant == "no"


def test_a_wrong_keys_file_names_both_places(tmp_path):
    keys = tmp_path / "keys.yaml"
    keys.write_text(f"- {{sha256: {'a' * 64}, tenant: acme}}\n- sha256: {'b' * 64}\n  tenant: acme\n  budget: turbo\n")
    message = at(tmp_path, TEXT.replace("allow_anonymous: true", f"allow_anonymous: true, keys_file: {keys}"))
    assert message.startswith(f"2:33: access.keys_file: {keys}:4:3: 1.budget: unknown budget profile 'turbo'")
    keys.write_text(f"- sha256: {'a' * 64}\n  tenant: acme\n  tenant: other\n")
    assert f"{keys}:3:3: 0.tenant: the key is there twice" in at(
        tmp_path, TEXT.replace("allow_anonymous: true", f"keys_file: {keys}")
    )


@pytest.mark.parametrize(
    ("server", "key", "says"),
    [
        ({"port": 9465}, "port", "9465 is for HAProxy's metrics"),
        ({"port": 9466}, "port", "9466 is for HAProxy's statistics"),
        ({"port": 9467}, "port", "9467 is for Serve's own proxy"),
        ({"port": 9468}, "port", "9468 is for Ray's metrics"),
        ({"port": 8002, "metrics_port": 8000}, "metrics_port", "8002 is for HAProxy's statistics"),
        ({"port": 9464}, "port", "port and metrics_port are both 9464"),
        ({"metrics_port": 65533}, "metrics_port", "there is no port 65536 for Serve's own proxy"),
        ({"port": 30000}, "port", "one of the replicas' ports"),
        ({"port": 31000}, "port", "one of the replicas' ports"),
        ({"metrics_port": 29996}, "metrics_port", "meet the replicas' ports"),
        ({"metrics_port": 30500}, "metrics_port", "meet the replicas' ports"),
        ({"host": "http://localhost"}, "host", "without scheme and port"),
        ({"host": ""}, "host", "neither an address nor a host name"),
    ],
)
def test_ports_that_meet_and_hosts_that_are_none_are_refused(write, server, key, says):
    message = problem(write(server=server))
    assert message.startswith(f"server.{key}: ")
    assert says in message


@pytest.mark.parametrize(
    "server",
    [
        {"port": 9463},
        {"port": 9469},
        {"metrics_port": 65531},
        {"port": 29999},
        {"port": 31001},
        {"metrics_port": 29995},
    ],
)
def test_ports_beside_those_of_the_platform_are_free_to_use(write, server):
    load_config(write(server=server))


def test_every_derived_port_is_one_that_the_platform_gives_to_ray(tmp_path):
    config = make_config(server={"metrics_port": 7000})
    environment = ray_environment(config, tmp_path)
    assert list(config.server.derived_ports.values()) == [7001, 7002, 7003, 7004]
    given = {int(value) for name, value in environment.items() if name.endswith("_PORT")}
    assert given == {7001, 7002, 7003}, "7004 is given to ray.init"


@pytest.mark.parametrize(
    ("name", "text", "starts"),
    [
        ("GEARBOX_SERVER__METRICS_PORT", "8000", "GEARBOX_SERVER__METRICS_PORT: server.metrics_port: port and"),
        ("GEARBOX_SERVER__PORT", "9466", "GEARBOX_SERVER__PORT: server.port: metrics_port (9464) and the 4 after it"),
        ("gearbox_server__port", "many", "gearbox_server__port: server.port: "),
        ("GEARBOX_SERVER__PROT", "9000", "GEARBOX_SERVER__PROT: server.prot: Extra inputs"),
        ("GEARBOX_SEVER__PORT", "9000", "GEARBOX_SEVER__PORT: the configuration has no such section"),
        ("GEARBOX_SERVER", '{"port": "many"}', "GEARBOX_SERVER: server.port: "),
        (
            "GEARBOX_SERVER__DRAIN_TIMEOUT_S",
            "inf",
            "GEARBOX_SERVER__DRAIN_TIMEOUT_S: server.drain_timeout_s: Input should be a finite",
        ),
        ("GEARBOX_PROFILES__FAST__TTFT_MS", "nan", "GEARBOX_PROFILES__FAST__TTFT_MS: profiles.fast.ttft_ms: "),
        ("GEARBOX_ENGINE", '{"a": [Infinity]}', "GEARBOX_ENGINE: engine.a.0: the number is not finite"),
        ("GEARBOX_ENGINE__A", ".nan", "GEARBOX_ENGINE__A:1:1: .nan is not a finite number"),
        ("GEARBOX_ENGINE__A", "010", "GEARBOX_ENGINE__A:1:1: 010 is one number"),
        ("GEARBOX_ENGINE__A__B", "off", "GEARBOX_ENGINE__A__B: engine.a.b: 'off' is true or false in YAML 1.1"),
        ("GEARBOX_VARIANTS__0__NAME", "x", "GEARBOX_VARIANTS__0__NAME: variants: "),
        ("GEARBOX_ACCESS__KEYS", "[oops", "GEARBOX_ACCESS__KEYS: not valid JSON"),
        (
            "GEARBOX_ACCESS__ANONYMOUS_PROFILE",
            "turbo",
            "GEARBOX_ACCESS__ANONYMOUS_PROFILE: access.anonymous_profile: unknown budget",
        ),
    ],
)
def test_a_wrong_override_names_the_variable(write, monkeypatch, name, text, starts):
    monkeypatch.setenv(name, text)
    assert refused(write(server={"port": 8000})).startswith(starts)


def test_a_wrong_value_in_the_file_is_not_blamed_on_an_override(write, monkeypatch):
    monkeypatch.setenv("GEARBOX_SERVER__HOST", "0.0.0.0")
    monkeypatch.setenv("GEARBOX_ROUTER", '{"confidence": 0.95}')
    assert problem(write(server={"port": "many"})).startswith("server.port: ")
    assert problem(write(router={"policy": "x"})).startswith("router.policy: ")


def test_arguments_and_variables_of_engines_keep_type_and_case_in_overrides(write, monkeypatch):
    monkeypatch.setenv("GEARBOX_ENGINE__MAX_MODEL_LEN", "2048")
    monkeypatch.setenv("GEARBOX_ENGINE__ENFORCE_EAGER", "true")
    monkeypatch.setenv("GEARBOX_ENGINE__SPECULATIVE_CONFIG__METHOD", "ngram")
    monkeypatch.setenv("GEARBOX_ENV__OMP_NUM_THREADS", "4")
    config = load_config(write(engine={"max_num_seqs": 8}, env={"OMP_NUM_THREADS": "2"}))
    assert config.engine == {
        "max_num_seqs": 8, "max_model_len": 2048, "enforce_eager": True, "speculative_config": {"method": "ngram"},
    }  # fmt: skip
    assert config.env == {"OMP_NUM_THREADS": "4"}


def test_no_error_shows_what_stands_in_the_file(tmp_path):
    text = TEXT + "retrieval:\n  database: postgresql://u:hunter2@h/d\n  database: : x\n"
    assert "hunter2" not in at(tmp_path, text)
    assert "hunter2" not in at(tmp_path, text.replace("  database: : x\n", "  colour: {hunter2\n"))


def test_anchors_can_be_used(tmp_path):
    file = tmp_path / "platform.yaml"
    common = "- &full {name: full, recipe: full, engine: {max_num_seqs: 4}}\n- {<<: *full, name: int8, recipe: int8}\n"
    file.write_text(TEXT.partition("- name")[0] + common)
    assert [(v.name, v.recipe, v.engine) for v in load_config(file).variants] == [
        ("full", "full", {"max_num_seqs": 4}),
        ("int8", "int8", {"max_num_seqs": 4}),
    ]
