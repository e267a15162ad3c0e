"""Errors of the configuration file: one line that names the place in the file and the key."""

import pytest

from benchmarks.lib.sample_catalog import MODEL
from tests.support.config_files import KEY, MINIMAL, error_of_text, problem, variant


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
    assert error_of_text(tmp_path, MINIMAL + more).startswith(starts)


def test_no_error_shows_what_stands_in_the_file(tmp_path):
    text = MINIMAL + "retrieval:\n  database: postgresql://u:hunter2@h/d\n  database: : x\n"
    assert "hunter2" not in error_of_text(tmp_path, text)
    assert "hunter2" not in error_of_text(tmp_path, text.replace("  database: : x\n", "  colour: {hunter2\n"))
