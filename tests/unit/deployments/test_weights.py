"""Location of weights, what is rejected before anything starts, and the build order of missing ones."""

from pathlib import Path

import pytest
import yaml

from benchmarks.lib.object_stores import Hub, serving
from benchmarks.lib.sample_catalog import make_card, make_config, write_variant
from compression.build.family import Family, PlannedVariant
from compression.progress import Progress
from deployments.weights import Weights, _with_eta
from serve.card import Step, load_card
from serve.config.platform import ConfigError

FULL = {"name": "full", "steps": [{"technique": "load"}]}
PRUNED = {"name": "pruned", "parent": "full", "steps": [{"technique": "prune", "layers": 20}]}
SMALL = {"name": "pruned-int8", "parent": "pruned", "steps": [{"technique": "quantize"}]}


@pytest.fixture
def recipes(tmp_path: Path) -> Path:
    folder = tmp_path / "recipes"
    folder.mkdir()
    for recipe in (FULL, PRUNED, SMALL):
        (folder / f"{recipe['name']}.yaml").write_text(yaml.safe_dump(recipe))
    return folder


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the variants that were made, in order, without the hours it takes."""
    names: list[str] = []

    def make(self: Family, planned: PlannedVariant, on_progress: object) -> Path:
        names.append(planned.name)
        return write_variant(planned.folder, make_card(planned.name))

    monkeypatch.setattr(Family, "make", make)
    return names


def weights(tmp_path: Path, *variants: dict[str, object]) -> Weights:
    return Weights(make_config(variants=variants), tmp_path / "cache")


def refused(tmp_path: Path, *variants: dict[str, object]) -> str:
    config = make_config(variants=variants)
    with pytest.raises(ConfigError) as caught:
        found = Weights(config, tmp_path / "cache")
        for variant in config.variants:
            found.ready(variant)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def only(tmp_path: Path, **fields: object):
    config = make_config(variants=[{"name": "full", **fields}])
    return Weights(config, tmp_path / "cache"), config.variants[0]


def test_named_weights_are_ready_when_their_card_matches(tmp_path):
    folder = write_variant(tmp_path / "own")
    found, variant = only(tmp_path, weights=str(folder))
    assert found.ready(variant) == folder
    assert found.seconds(variant) == 0


def test_named_weights_that_are_missing_are_refused(tmp_path):
    message = refused(tmp_path, {"name": "own", "weights": str(tmp_path / "nowhere")})
    assert message.startswith("variant 'own': ")
    assert "nowhere" in message


def test_named_weights_that_are_a_file_are_refused(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"x")
    message = refused(tmp_path, {"name": "own", "weights": str(tmp_path / "model.safetensors")})
    assert message.startswith("variant 'own': ")


def test_weights_that_are_not_what_their_card_says_are_refused(tmp_path):
    folder = write_variant(tmp_path / "own")
    (folder / "model.safetensors").write_bytes(b"other")
    assert "does not match the weights" in refused(tmp_path, {"name": "own", "weights": str(folder)})


@pytest.mark.parametrize("changes", [{"quality": None}, {"profile": None}])
def test_weights_that_were_never_measured_are_refused(tmp_path, changes):
    card = make_card().model_copy(update=changes)
    folder = write_variant(tmp_path / "own", card)
    assert "no measured quality or profile" in refused(tmp_path, {"name": "own", "weights": str(folder)})


def test_an_unknown_recipe_is_refused(tmp_path):
    assert "int3.yaml" in refused(tmp_path, {"name": "int3", "recipe": "int3"})


def test_a_wrong_recipe_is_refused_by_file_and_field(tmp_path, recipes):
    (recipes / "full.yaml").write_text(yaml.safe_dump({**FULL, "colour": "red"}))
    message = refused(tmp_path, {"name": "full", "recipe": str(recipes / "full.yaml")})
    assert "full.yaml" in message
    assert "colour" in message


def test_a_source_that_is_none_is_refused(tmp_path):
    config = make_config(model={"name": "m", "source": "no such thing"})
    with pytest.raises(ConfigError, match="'no such thing' is no model source"):
        Weights(config, tmp_path)


@pytest.mark.parametrize("name", ["int8.v2", "int8_v2"])
def test_any_variant_name_that_the_configuration_allows_can_have_a_recipe(tmp_path, recipes, name):
    assert weights(tmp_path, {"name": name, "recipe": str(recipes / "full.yaml")})


def test_recipes_are_found_by_name_or_path(tmp_path, recipes):
    for recipe in ("full", str(recipes / "full.yaml")):
        found, variant = only(tmp_path, recipe=recipe)
        assert found.ready(variant) is None, "known, and not yet made"
        assert found.seconds(variant) > 0


def test_made_weights_are_ready_the_next_time(tmp_path, recipes, made, monkeypatch):
    entry = {"name": "full", "recipe": str(recipes / "full.yaml")}
    config = make_config(variants=[entry])
    first = Weights(config, tmp_path / "cache")
    folder = first.make(config.variants[0], lambda *_: None, background=False)
    monkeypatch.setattr("compression.build.family._is_measured", lambda folder, key: True)
    again = Weights(config, tmp_path / "cache")
    assert again.ready(config.variants[0]) == folder
    assert again.seconds(config.variants[0]) == 0


def test_parents_are_made_first(tmp_path, recipes, made):
    config = make_config(variants=[{"name": "pruned", "recipe": str(recipes / "pruned.yaml")}])
    Weights(config, tmp_path / "cache").make(config.variants[0], lambda *_: None, background=False)
    assert made == ["full", "pruned"]


def test_all_ancestors_are_made_first(tmp_path, recipes, made):
    config = make_config(variants=[{"name": "pruned-int8", "recipe": str(recipes / "pruned-int8.yaml")}])
    Weights(config, tmp_path / "cache").make(config.variants[0], lambda *_: None, background=False)
    assert made == ["full", "pruned", "pruned-int8"]


FP8 = {"name": "fp8", "parent": "full", "steps": [{"technique": "quantize", "scheme": "FP8"}]}


def test_a_recipe_without_a_kernel_here_is_refused_before_it_is_made(tmp_path, recipes):
    (recipes / "fp8.yaml").write_text(yaml.safe_dump(FP8))
    message = refused(tmp_path, {"name": "fp8", "recipe": str(recipes / "fp8.yaml")})
    assert message.startswith("variant 'fp8' cannot be served here: vLLM has no kernel for FP8 on CPUs")


def test_named_weights_without_a_kernel_here_are_refused(tmp_path):
    step = Step(technique="quantize", parameters={"scheme": "W8A16"}, tool="t")
    folder = write_variant(tmp_path / "own", make_card(steps=(step,)))
    assert "no kernel for W8A16 on CPUs" in refused(tmp_path, {"name": "own", "weights": str(folder)})


def test_the_same_weights_are_ready_where_there_is_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr("compression.hardware.compute_capability", lambda: (9, 0))
    step = Step(technique="quantize", parameters={"scheme": "FP8"}, tool="t")
    folder = write_variant(tmp_path / "own", make_card(steps=(step,)))
    found, variant = only(tmp_path, weights=str(folder), resources={"gpus": 1})
    assert found.ready(variant) == folder


def test_a_recipe_that_cannot_start_from_its_parent_is_refused(tmp_path, recipes):
    again = {"name": "again", "parent": "pruned-int8", "steps": [{"technique": "prune", "layers": 9}]}
    (recipes / "again.yaml").write_text(yaml.safe_dump(again))
    assert "its weights are quantized" in refused(tmp_path, {"name": "again", "recipe": str(recipes / "again.yaml")})


def test_the_seconds_left_are_the_stages_own_pace_and_the_later_stages_estimates(monkeypatch, tmp_path, recipes):
    now = [100.0]
    monkeypatch.setattr("deployments.weights.time.monotonic", lambda: now[0])
    config = make_config(variants=[{"name": "full", "recipe": str(recipes / "full.yaml")}])
    planned = Weights(config, tmp_path / "cache")._planned[0]
    later = sum(planned.seconds.values()) - planned.seconds["load"]
    reported: list[tuple[str, float, float, float]] = []
    report = _with_eta(planned, lambda *facts: reported.append(facts))
    report(Progress(stage="load", done=0, total=10, unit="s"))
    now[0] += 20
    report(Progress(stage="load", done=5, total=10, unit="s"))
    report(Progress(stage=list(planned.seconds)[-1], done=10, total=10, unit="s"))
    assert reported[0] == ("load", 0, 10, planned.seconds["load"] + later)
    assert reported[1] == ("load", 5, 10, 20 + later)
    assert reported[2][3] == 0


def test_a_branch_that_has_moved_is_copied_again(tmp_path, monkeypatch):
    folders = []
    for commit in ("a" * 40, "b" * 40):
        with serving(Hub, tmp_path, commit=commit) as (url, _):
            monkeypatch.setenv("HF_ENDPOINT", url)
            found, variant = only(tmp_path, weights="hf://org/name@v1")
            assert found.ready(variant) is None
            folders.append(found._folder(variant))
    assert folders[0] != folders[1]


def test_a_copy_of_a_commit_is_ready_without_the_hub_and_a_branch_is_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    found, variant = only(tmp_path, weights=f"hf://org/name@{'a' * 40}")
    write_variant(found._folder(variant))
    assert found.ready(variant) == found._folder(variant)
    assert "which commit org/name@main is at" in refused(tmp_path, {"name": "own", "weights": "hf://org/name@main"})


def test_a_copy_with_a_digest_is_ready_without_the_hub_wherever_its_branch_is(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    digest = load_card(write_variant(tmp_path / "made")).weights_digest
    found, variant = only(tmp_path, weights="hf://org/name@main", digest=digest)
    folder = write_variant(found._folder(variant))
    assert found.ready(variant) == folder


def test_a_hub_that_no_build_starts_from_is_not_contacted(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    folder = write_variant(tmp_path / "own")
    config = make_config(model={"name": "m", "source": "org/name"}, variants=[{"name": "full", "weights": str(folder)}])
    assert Weights(config, tmp_path / "cache").ready(config.variants[0]) == folder
