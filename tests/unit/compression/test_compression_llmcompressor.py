"""Every step that needs llm-compressor or PEFT, on a tiny model, in the compression environment; the results are read here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import load_file  # noqa: E402

from serve.card import check_card, load_card  # noqa: E402
from tests.support.llmcompressor_builds import VARIANTS  # noqa: E402

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]
LINEARS = 4 * 7  # of four layers
FULL_PARAMETERS = 2 * 102 * 64 + 4 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 96 + 2 * 64) + 64


def interpreter() -> Path:
    """The compression environment's, see `compression.build.subprocesses`; read when this is imported, before variables are cleared."""
    beside = Path(sys.prefix).with_name(".venv-compression") / "bin/python"
    return Path(os.environ.get("GEARBOX_COMPRESSION_PYTHON") or beside)


PYTHON = interpreter()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with all variants."""
    if not PYTHON.exists():
        pytest.skip(f"no compression environment at {PYTHON}: run 'make install'")
    folder = tmp_path_factory.mktemp("made")
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [PYTHON, "-m", "tests.support.llmcompressor_builds", folder],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"name"')]
    assert [one for one in results if "error" in one] == []
    (folder / "results.json").write_text(json.dumps({one["name"]: one["stages"] for one in results}))
    return folder


def tensors(made: Path, name: str) -> "dict[str, torch.Tensor]":
    return load_file(made / name / "model.safetensors")


def linears(made: Path, name: str, ending: str = "proj.weight") -> "dict[str, torch.Tensor]":
    return {key: tensor for key, tensor in tensors(made, name).items() if key.endswith(ending)}


def quantization(made: Path, name: str) -> dict[str, object]:
    return json.loads((made / name / "config.json").read_text())["quantization_config"]


def test_every_variant_has_a_card_that_fits_and_counts_the_same_weights(made: Path) -> None:
    for name in VARIANTS:
        card = load_card(made / name)
        check_card(card, made / name)
        if name != "pruned-half-int8":
            assert card.parameters == FULL_PARAMETERS, name
        assert not (made / f"{name}.part").exists()


@pytest.mark.parametrize(
    ("name", "bits", "kind", "strategy", "activations"),
    [
        ("int8", 8, "int", "channel", ("token", True)),
        ("int8-rtn", 8, "int", "channel", ("token", True)),
        ("int8-static", 8, "int", "channel", ("tensor", False)),
        ("w8a16", 8, "int", "channel", None),
        ("int4-gptq", 4, "int", "group", None),
        ("int4-awq", 4, "int", "group", None),
        ("fp8", 8, "float", "channel", ("token", True)),
    ],
)
def test_the_scheme_is_the_requested_one(
    made: Path, name: str, bits: int, kind: str, strategy: str, activations: tuple[str, bool] | None
) -> None:
    (group,) = quantization(made, name)["config_groups"].values()
    weights = group["weights"]
    assert (weights["num_bits"], weights["type"], weights["strategy"]) == (bits, kind, strategy)
    found = group["input_activations"]
    assert (found and (found["strategy"], found["dynamic"])) == activations
    assert quantization(made, name)["ignore"] == ["lm_head"]


@pytest.mark.parametrize(
    ("name", "ending", "dtype"),
    [
        ("int8", "proj.weight", torch.int8),
        ("int8-static", "proj.input_scale", None),
        ("w8a16", "proj.weight_packed", torch.int32),
        ("int4-awq", "proj.weight_packed", torch.int32),
        ("fp8", "proj.weight", torch.float8_e4m3fn),
    ],
)
def test_every_linear_layer_is_stored_in_it(made: Path, name: str, ending: str, dtype: object) -> None:
    found = linears(made, name, ending)
    assert len(found) == LINEARS
    assert dtype is None or {tensor.dtype for tensor in found.values()} == {dtype}
    assert tensors(made, name)["model.embed_tokens.weight"].dtype == torch.bfloat16


def test_smoothing_moves_outliers_and_calibration_does_not_change_the_shape(made: Path) -> None:
    norm = "model.layers.0.input_layernorm.weight"
    assert not torch.equal(tensors(made, "int8")[norm], tensors(made, "int8-rtn")[norm])


@pytest.mark.parametrize(("name", "kind"), [("fp8-cache", "float"), ("int8-cache", "int")])
def test_a_cache_scheme_has_its_scales(made: Path, name: str, kind: str) -> None:
    scheme = quantization(made, name)["kv_cache_scheme"]
    assert (scheme["num_bits"], scheme["type"], scheme["strategy"]) == (8, kind, "tensor")
    assert len(linears(made, name, "k_scale")) == len(linears(made, name, "v_scale")) == 4


def zeros(found: "dict[str, torch.Tensor]") -> float:
    return sum(int((tensor == 0).sum()) for tensor in found.values()) / sum(t.numel() for t in found.values())


@pytest.mark.parametrize(("name", "share"), [("wanda", 0.6), ("two-four", 0.5)])
def test_the_share_of_zeros_is_the_requested_one(made: Path, name: str, share: float) -> None:
    found = linears(made, name)
    assert zeros(found) == pytest.approx(share, abs=0.01)
    assert load_card(made / name).steps[0].parameters["measured_sparsity"] == pytest.approx(share, abs=0.01)
    assert tensors(made, name)["lm_head.weight"].count_nonzero() == 102 * 64


@pytest.mark.parametrize("name", ["two-four", "two-four-int8"])
def test_two_of_four_are_zero_even_after_quantization(made: Path, name: str) -> None:
    found = linears(made, name)
    assert len(found) == LINEARS
    for tensor in found.values():
        assert ((tensor == 0).float().unflatten(1, (-1, 4)).sum(-1) >= 2).all()


def test_steps_compose_into_one_card(made: Path) -> None:
    card = load_card(made / "pruned-half-int8")
    assert [step.technique for step in card.steps] == ["prune", "cast", "quantize"]
    assert len(linears(made, "pruned-half-int8")) == 3 * 7
    assert tensors(made, "pruned-half-int8")["model.norm.weight"].dtype == torch.float16
    assert json.loads((made / "results.json").read_text())["pruned-half-int8"][0] == "prune"


def test_a_model_can_be_quantized_straight_from_its_source(made: Path) -> None:
    card = load_card(made / "from-source")
    assert (card.parent, [step.technique for step in card.steps]) == (None, ["load", "quantize"])


def test_lora_heals_and_leaves_a_plain_model(made: Path) -> None:
    if not (made / "lora").exists():
        pytest.skip(f"peft is not installed beside {PYTHON}: run 'make install'")
    step = load_card(made / "lora").steps[1]
    assert step.technique == "lora"
    assert step.tool.startswith("peft ")
    assert step.parameters["trained_steps"] == 30
    assert step.parameters["last_loss"] < step.parameters["first_loss"]
    assert len(linears(made, "lora")) == 3 * 7
    assert not [key for key in tensors(made, "lora") if "lora" in key]
