"""Drift from float32, by hand and on tiny random models: plain, and with int8 weights and activations."""

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from compression.measure import drift  # noqa: E402
from compression.measure.divergence import TopK  # noqa: E402
from compression.measure.drift import DriftError, Float32Reference, compute_reference, measure_drift  # noqa: E402

SEQUENCES = torch.randint(64, (3, 20), generator=torch.Generator().manual_seed(0)).tolist()
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


def quiet(*_: object) -> None:
    pass


def served(targets: list[float]) -> TopK:
    ids = np.zeros((len(targets), 1), np.int32)
    return TopK(ids, np.zeros_like(ids, np.float32), np.array(targets, np.float32))


TARGETS = np.array([-1.0, -2.0, -3.0])
REFERENCE = Float32Reference(TARGETS, np.array([0.05, 1.0, 2.0]), np.array([0.05, 0.5, 0.0]), TARGETS)


def test_by_hand() -> None:
    found = measure_drift(served([-1.1, -2.0, -2.8]), REFERENCE, 1.0, "float32")
    assert (found.mean_abs, found.max_abs) == (pytest.approx(0.1), pytest.approx(0.2))
    assert (found.top1_flips, found.near_tie_flips, found.near_ties, found.tokens) == (2, 1, 1, 3)
    assert (found.limit, found.reference, found.activation_rounding) == (1.0, "float32", 0.0)


@pytest.mark.parametrize("targets", [[-1.5, -2.5, -3.5], [float("nan"), -2.0, -3.0]])
def test_a_mean_beyond_the_limit_or_no_number_is_refused_with_one_line(targets: list[float]) -> None:
    with pytest.raises(DriftError, match=r"nats from the float32 reference on average, the limit is 0\.2") as refused:
        measure_drift(served(targets), REFERENCE, 0.2, "float32")
    assert "\n" not in str(refused.value)


def test_the_rounding_of_activations_is_allowed_for() -> None:
    rounded = Float32Reference(
        REFERENCE.targets, REFERENCE.top2_gaps, REFERENCE.choice_gaps, np.add(TARGETS, [0.3, -0.3, 0.3])
    )
    found = measure_drift(served([-1.35, -2.35, -3.35]), rounded, 0.1, "float32")
    assert (found.mean_abs, found.activation_rounding) == (pytest.approx(0.35), pytest.approx(0.3))
    with pytest.raises(DriftError, match=r"limit is 0\.1 beyond the 0\.300 of quantized activations"):
        measure_drift(served([-1.45, -2.45, -3.45]), rounded, 0.1, "float32")


def tiny(folder: Path, **options: object) -> "transformers.LlamaForCausalLM":
    torch.manual_seed(0)
    config = transformers.LlamaConfig(num_hidden_layers=2, initializer_range=0.3, **SIZES, **options)
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(folder)
    return model


def answers(model: "transformers.LlamaForCausalLM") -> TopK:
    """What an engine would answer that computes with `model`."""
    tokens = torch.tensor(SEQUENCES)
    with torch.no_grad():
        logprobs = model(tokens).logits[:, :-1].float().log_softmax(-1)
    values, ids = logprobs.topk(1)
    targets = logprobs.gather(-1, tokens[:, 1:, None]).flatten()
    return TopK(ids.flatten(0, 1).numpy().astype(np.int32), values.flatten(0, 1).numpy(), targets.numpy())


def test_the_same_weights_in_float32_do_not_drift(tmp_path: Path) -> None:
    top = answers(tiny(tmp_path))
    reference, label = compute_reference(tmp_path, SEQUENCES, top, quiet)
    found = measure_drift(top, reference, drift.MAX_MEAN_DRIFT, label)
    assert found.mean_abs < 1e-5
    assert (found.top1_flips, found.tokens) == (0, 3 * 19)
    assert label.startswith("transformers ") and label.endswith("float32, CPU")


def test_other_weights_drift_and_their_flips_are_counted(tmp_path: Path) -> None:
    model = tiny(tmp_path)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    top = answers(model)
    reference, label = compute_reference(tmp_path, SEQUENCES, top, quiet)
    with pytest.raises(DriftError):
        measure_drift(top, reference, drift.MAX_MEAN_DRIFT, label)
    found = measure_drift(top, reference, 100.0, label)
    clean = answers(transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32))
    assert found.top1_flips == (top.ids != clean.ids).sum() > 0


def fake_quantized(values: torch.Tensor) -> torch.Tensor:
    """Symmetric int8 of each row, as float again."""
    scale = values.abs().amax(-1, keepdim=True) / 127.5
    return (values / scale).round().clamp(-128, 127) * scale


def to_int8(folder: Path) -> None:
    """Turn the checkpoint in `folder` into W8A8 compressed-tensors: int8 weights per channel, activations per token."""
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    tensors = {}
    for key, value in load_file(file).items():
        if "_proj" in key:
            scale = value.abs().amax(-1, keepdim=True) / 127.5
            tensors[key] = (value / scale).round().clamp(-128, 127).to(torch.int8)
            tensors[f"{key}_scale"] = scale
        else:
            tensors[key] = value
    save_file(tensors, file, {"format": "pt"})
    of_both = {"num_bits": 8, "type": "int", "symmetric": True}
    group = {
        "targets": ["Linear"],
        "weights": {**of_both, "strategy": "channel", "dynamic": False},
        "input_activations": {**of_both, "strategy": "token", "dynamic": True},
    }
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }
    (folder / "config.json").write_text(json.dumps(config))


def test_the_reference_of_int8_is_its_weights_and_its_rounding_that_of_the_activations(tmp_path: Path) -> None:
    """Compared with the same arithmetic written out."""
    pytest.importorskip("compressed_tensors")  # here, not above: importing it takes seconds
    model = tiny(tmp_path)
    to_int8(tmp_path)
    for name, module in model.named_modules():
        if name.endswith("_proj"):
            module.weight.data = fake_quantized(module.weight.data)
    weights_only = answers(model)
    for name, module in model.named_modules():
        if name.endswith("_proj"):
            module.register_forward_pre_hook(lambda _, inputs: (fake_quantized(inputs[0]),))
    both = answers(model)
    reference, label = compute_reference(tmp_path, SEQUENCES, both, quiet)
    assert "compressed-tensors" in label
    assert np.abs(reference.targets - weights_only.targets).max() < 1e-4
    apart = np.abs(both.targets - weights_only.targets).mean()
    assert apart > 0.01
    assert np.abs(reference.rounded_targets - both.targets).mean() < 0.2 * apart
    assert measure_drift(both, reference, drift.MAX_MEAN_DRIFT, label).activation_rounding == pytest.approx(
        apart, rel=0.2
    )


def test_without_the_memory_there_is_no_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    top = answers(tiny(tmp_path))

    class Memory:
        available = drift.float32_bytes(tmp_path)

    monkeypatch.setattr(drift.psutil, "virtual_memory", Memory)
    assert compute_reference(tmp_path, SEQUENCES, top, quiet) is None


def test_weights_that_transformers_cannot_load_are_one_line(tmp_path: Path) -> None:
    top = answers(tiny(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "nonesuch"}))
    with pytest.raises(DriftError, match="cannot compute the float32 reference of") as refused:
        compute_reference(tmp_path, SEQUENCES, top, quiet)
    assert "\n" not in str(refused.value)
