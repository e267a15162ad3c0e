"""Overrides from environment variables: precedence, types, and errors that name the variable."""

import pytest

from serve.config.platform import load_config
from tests.support.config_files import load_error, problem


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


def test_a_wrong_value_in_the_environment_is_named(write, monkeypatch):
    monkeypatch.setenv("GEARBOX_SERVER__PORT", "many")
    assert load_error(write(server={"port": 9000})).startswith("GEARBOX_SERVER__PORT: server.port: ")


@pytest.mark.parametrize(("name", "text"), [("GEARBOX_VARIANTS", "full,int8"), ("GEARBOX_ENGINE", "{oops")])
def test_an_environment_value_that_cannot_be_read_is_one_line_too(write, monkeypatch, name, text):
    monkeypatch.setenv(name, text)
    assert load_error(write()).startswith(f"{name}: ")


def test_the_commands_own_variables_are_no_configuration(write, monkeypatch):
    for name in ("GEARBOX_URL", "GEARBOX_API_KEY", "GEARBOX_CONFIG", "GEARBOX_RUN_ID", "GEARBOX_STATE_DIR"):
        monkeypatch.setenv(name, "x")
    load_config(write())


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
    assert load_error(write(server={"port": 8000})).startswith(starts)


def test_a_wrong_value_in_the_file_is_not_blamed_on_an_override(write, monkeypatch):
    monkeypatch.setenv("GEARBOX_SERVER__HOST", "0.0.0.0")
    monkeypatch.setenv("GEARBOX_OBSERVABILITY", '{"log_requests": false}')
    assert problem(write(server={"port": "many"})).startswith("server.port: ")
    assert problem(write(observability={"trace_sample_ratio": 2})).startswith("observability.trace_sample_ratio: ")


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
