"""Export: convert the last checkpoint to its final format and write the variant's folder with its card."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from compression.build.step_checkpoints import STEP_FILE, Checkpoint
from compression.errors import UserError
from compression.files import write_atomically
from serve.card import Card, weight_files, weights_digest


class ExportError(UserError):
    """Weights that cannot be stored in the requested format."""


def export_variant(checkpoint: Checkpoint, out: Path, card: Callable[[Path], Card]) -> Card:
    """Write the folder `out` from the checkpoint, atomically by a rename; then delete the build folder.

    Args:
        card: makes the card for the final weights in a folder.

    Raises:
        ExportError: a weight is too large for the format.
    """
    staging = checkpoint.folder.with_name("finished")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    for file in checkpoint.folder.iterdir():
        if file.suffix == ".safetensors":
            _convert_file(checkpoint.dtype, file, staging / file.name)
        elif file.name != STEP_FILE:
            shutil.copyfile(file, staging / file.name)
    config = staging / "config.json"
    write_atomically(config, json.dumps({**json.loads(config.read_text()), "dtype": checkpoint.dtype}, indent=2))
    variant_card = card(staging)
    variant_card.save(staging)
    staging.rename(out)
    shutil.rmtree(checkpoint.folder.parent)
    return variant_card


def count_parameters(folder: Path) -> int:
    """Number of network parameters in the files of `folder`, without scales and other quantization data."""
    from safetensors import safe_open

    total = 0
    for file in weight_files(folder):
        with safe_open(file, "pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 (not a mapping)
                kind = key.rsplit(".", 1)[-1]
                if kind in {"weight", "bias"}:
                    shape = tensors.get_slice(key).get_shape()
                    total += int.__mul__(*shape) if len(shape) == 2 else shape[0] if shape else 1
                elif kind == "weight_shape":  # packed: several weights per stored number
                    total += int(tensors.get_tensor(key).prod())
    return total


def variant_facts(folder: Path) -> dict[str, object]:
    """Card fields that are read from the files: digest, parameters, size, context length."""
    config = json.loads((folder / "config.json").read_text())
    return {
        "weights_digest": weights_digest(folder),
        "parameters": count_parameters(folder),
        "bytes_on_disk": sum(file.stat().st_size for file in weight_files(folder)),
        "max_model_len": config["max_position_embeddings"],
    }


def _convert_file(dtype: str, file: Path, target: Path) -> None:
    """Copy a weight file with its weights and biases in `dtype`; quantized weights and scales stay as they are."""
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(file)
    for key, tensor in tensors.items():
        stored = tensor.is_floating_point() and tensor.element_size() > 1  # FP8 stays
        if stored and key.endswith((".weight", ".bias")):
            tensors[key] = tensor.to(getattr(torch, dtype))
            if not torch.isfinite(tensors[key]).all():
                raise ExportError(f"{key} has values that {dtype} cannot hold: cast to bfloat16 instead")
    save_file(tensors, target, {"format": "pt"})
    target.chmod(0o644)  # safetensors writes for the owner alone; serving may run as someone else
