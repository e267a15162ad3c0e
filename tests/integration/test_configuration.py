"""An invalid configuration: one clear line, exit code 2, nothing started."""

from pathlib import Path

import pytest
import yaml

from deployments.state import load_state
from tests.support.platform import ROOT, Platform, gearbox
from tests.support.waiting import eventually


def base() -> dict:
    return yaml.safe_load((ROOT / "deployments/local.yaml").read_text())


def unknown_key(settings: dict, folder: Path) -> str:
    settings["server"]["prot"] = 1
    return "server.prot"


def missing_weights(settings: dict, folder: Path) -> str:
    settings["variants"] = [{"name": "full", "weights": str(folder / "nowhere")}]
    return "nowhere"


def same_name_twice(settings: dict, folder: Path) -> str:
    settings["variants"].append(settings["variants"][0])
    return "two variants are called 'full'"


def unknown_recipe(settings: dict, folder: Path) -> str:
    settings["variants"][0]["recipe"] = "magic"
    return "magic"


def unknown_source(settings: dict, folder: Path) -> str:
    settings["model"]["source"] = str(folder / "no-model")
    return "no-model"


def card_of_other_weights(settings: dict, folder: Path) -> str:
    weights = folder / "tampered"
    weights.mkdir()
    (weights / "model.safetensors").write_bytes(b"other weights")
    (weights / "card.json").write_text(CARD)
    settings["variants"] = [{"name": "full", "weights": str(weights)}]
    return "does not match the weights"


def broken_card(settings: dict, folder: Path) -> str:
    weights = folder / "broken"
    weights.mkdir()
    (weights / "model.safetensors").write_bytes(b"weights")
    (weights / "card.json").write_text("{}")
    settings["variants"] = [{"name": "full", "weights": str(weights)}]
    return "is not a valid card"


CARD = """{"name": "full", "model": "smollm2-135m", "parent": null, "steps": [{"technique": "load", "tool": "none"}],
"weights_digest": "sha256:%s", "parameters": 1, "bytes_on_disk": 1, "max_model_len": 1, "chars_per_token": 4,
"reproduce": "none"}""" % ("0" * 64)


@pytest.mark.parametrize(
    "break_it",
    [unknown_key, missing_weights, same_name_twice, unknown_recipe, unknown_source, card_of_other_weights, broken_card],
)
def test_a_wrong_configuration_starts_nothing(break_it, tmp_path: Path) -> None:
    settings = base()
    complaint = break_it(settings, tmp_path)
    config = tmp_path / "wrong.yaml"
    config.write_text(yaml.safe_dump(settings))
    result = gearbox("up", "--config", str(config), state_dir=tmp_path / "state")
    assert result.returncode == 2, result.stdout + result.stderr
    assert len(result.stderr.strip().splitlines()) == 1 and complaint in result.stderr
    assert load_state(tmp_path / "state") is None


def test_unknown_variants_are_refused(tmp_path: Path) -> None:
    result = gearbox("up", "--variants", "full,int3", state_dir=tmp_path / "state")
    assert result.returncode == 2 and "int3" in result.stderr


def test_down_and_status_without_a_platform(tmp_path: Path) -> None:
    assert "nothing is running" in gearbox("down", state_dir=tmp_path).stdout
    status = gearbox("status", state_dir=tmp_path)
    assert status.returncode == 1 and "nothing is running" in status.stderr


def objective_of_best(platform: Platform) -> str:
    with platform.http() as http:
        return http.get(f"/v1/models/{platform.model}@best").json()["gearbox"]["budget"]["objective"]


@pytest.mark.platform
def test_profiles_are_taken_anew_while_answers_are_under_way(platform: Platform) -> None:
    before = platform.config.read_text()
    body = {"model": f"{platform.model}:full", "prompt": "Once upon a time", "max_tokens": 60, "stream": True}
    ended = False
    try:
        with platform.http() as http, http.stream("POST", "/v1/completions", json=body) as answer:
            lines = answer.iter_lines()
            next(lines)
            config = yaml.safe_load(before)
            config["profiles"] = {**config.get("profiles", {}), "best": {"objective": "cost"}}
            platform.config.write_text(yaml.safe_dump(config))
            done = platform.gearbox("reload")
            assert (done.returncode, "best" in done.stdout) == (0, True), done.stderr
            eventually(lambda: objective_of_best(platform) == "cost", 30, "the gateway takes the profile")
            ended = list(lines)[-2:] == ["data: [DONE]", ""]
        with platform.http() as http:
            response = http.post(
                "/v1/completions", json={"model": f"{platform.model}@best", "prompt": "Hi", "max_tokens": 2}
            )
            assert response.headers["x-gearbox-reason"] == "cost"
        platform.config.write_text("profiles: {best: {objective: magic}}")
        refused = platform.gearbox("reload")
        assert refused.returncode == 2
        assert len(refused.stderr.splitlines()) == 1
        assert objective_of_best(platform) == "cost"
    finally:
        platform.config.write_text(before)
        assert platform.gearbox("reload").returncode == 0
        eventually(lambda: objective_of_best(platform) == "quality", 30, "the gateway takes the profile back")
    assert ended, "the answer under way came whole"


def test_reload_without_a_platform(tmp_path: Path) -> None:
    done = gearbox("reload", state_dir=tmp_path)
    assert done.returncode == 1
    assert "nothing is running" in done.stderr
