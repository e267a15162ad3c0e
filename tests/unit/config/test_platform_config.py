"""The platform's configuration: defaults, shipped files, checks across sections, and choice of variants."""

from pathlib import Path

import pytest
import yaml

from benchmarks.lib.sample_catalog import MODEL, make_config
from serve.budget import DEFAULT_PROFILES, Budget
from serve.config.platform import ConfigError, load_config
from serve.request.call import ModelRef
from tests.support.config_files import KEY, MINIMAL, problem, variant

ROOT = Path(__file__).parents[3]


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


@pytest.mark.parametrize("store", ["memory://", "async+nosuch://", "redis"])
def test_a_limits_store_that_cannot_be_used_is_refused(write, store):
    assert "rate_limit_store" in problem(write(access={"allow_anonymous": True, "rate_limit_store": store}))


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


@pytest.mark.parametrize(
    ("changes", "policy"),
    [
        ({}, "priority"),
        ({"engine": {"scheduling_policy": "fcfs"}}, "fcfs"),
        ({"frontend": {"scheduling_policy": "fcfs"}}, "fcfs"),
        (variant(engine={"scheduling_policy": "fcfs"}), "fcfs"),
    ],
)
def test_engines_schedule_by_priority_where_nothing_else_is_configured(changes, policy):
    config = make_config(**changes)
    assert config.serving_args(config.variants[0])["scheduling_policy"] == policy


def test_the_default_scheduling_policy_does_not_have_variants_measured_again():
    config = make_config()
    assert "scheduling_policy" not in config.engine_args(config.variants[0])


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


def test_words_that_look_like_booleans_are_text_in_text_fields(tmp_path):
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


def test_anchors_can_be_used(tmp_path):
    file = tmp_path / "platform.yaml"
    common = "- &full {name: full, recipe: full, engine: {max_num_seqs: 4}}\n- {<<: *full, name: int8, recipe: int8}\n"
    file.write_text(MINIMAL.partition("- name")[0] + common)
    assert [(v.name, v.recipe, v.engine) for v in load_config(file).variants] == [
        ("full", "full", {"max_num_seqs": 4}),
        ("int8", "int8", {"max_num_seqs": 4}),
    ]
