"""A variant's Serve application: the environment that its engines get, and what runs before they start."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments import variant
from serve.card import CARD_FILE
from serve.config.platform import PlatformConfig

LOCAL = Path(__file__).parents[3] / "deployments/local.yaml"


def environment(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> dict[str, str]:
    """Variables of the engine of the first variant of the demo, with other settings of it."""
    settings = yaml.safe_load(LOCAL.read_text())
    settings["variants"][0].update(changes)
    config, built = PlatformConfig.model_validate(settings), []
    monkeypatch.setattr(variant, "build_llm_deployment", lambda llm_config, **_: built.append(llm_config))
    variant.variant_app(config, config.variants[0], Path("/nowhere"), "token")
    return built[0].runtime_env["env_vars"]


def test_an_eager_engine_on_cpus_compiles_nothing_while_it_serves(monkeypatch):
    """The first request with log-probabilities would keep it from answering anybody for seconds."""
    assert environment(monkeypatch)["TORCH_COMPILE_DISABLE"] == "1"


@pytest.mark.parametrize("changes", [{"engine": {"enforce_eager": False}}, {"resources": {"gpus": 1}}])
def test_other_engines_compile(monkeypatch, changes):
    assert "TORCH_COMPILE_DISABLE" not in environment(monkeypatch, **changes)


def test_the_operators_environment_comes_first(monkeypatch):
    assert environment(monkeypatch, env={"TORCH_COMPILE_DISABLE": "0"})["TORCH_COMPILE_DISABLE"] == "0"


@pytest.mark.parametrize(("resources", "expected"), [({}, "prepare_cpu_engine"), ({"gpus": 1}, "prepare_engine")])
def test_an_engine_without_a_gpu_reports_its_cpu_time(monkeypatch, resources, expected):
    waits: list[Any] = []
    before = variant.before_engine_start
    monkeypatch.setattr(variant, "before_engine_start", lambda wait: waits.append(wait) or before(wait))
    environment(monkeypatch, resources=resources)
    assert waits == [getattr(variant, expected)]


async def test_the_engine_of_a_cpu_waits_for_its_weights_too(monkeypatch, tmp_path):
    reported = []
    monkeypatch.setattr(variant, "report_engine_cpu_time", lambda: reported.append(True))
    (tmp_path / CARD_FILE).touch()
    await variant.prepare_cpu_engine(tmp_path)
    assert reported == [True]
