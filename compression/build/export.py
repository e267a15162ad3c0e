"""From the weights that the last step left to a variant's folder: stored in their final format, with a card."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from compression.build.step_checkpoints import STEP_FILE, Kept
from compression.errors import KnownError
from compression.files import write_whole
from serve.card import Card, weight_files, weights_digest


class FinishError(KnownError):
    """Weights that cannot be stored in the format asked for."""


def finish(kept: Kept, out: Path, card: Callable[[Path], Card]) -> Card:
    """Make the folder `out` from what was kept, all at once at the very end; then drop the scratch folder.

    Args:
        card: makes the card of the finished weights in a folder.

    Raises:
        FinishError: a weight is too large for the format.
    """
    fresh = kept.folder.with_name("finished")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    for file in kept.folder.iterdir():
        if file.suffix == ".safetensors":
            _store_as(kept.dtype, file, fresh / file.name)
        elif file.name != STEP_FILE:
            shutil.copyfile(file, fresh / file.name)
    config = fresh / "config.json"
    write_whole(config, json.dumps({**json.loads(config.read_text()), "dtype": kept.dtype}, indent=2))
    made = card(fresh)
    made.save(fresh)
    fresh.rename(out)
    shutil.rmtree(kept.folder.parent)
    return made


def parameters(folder: Path) -> int:
    """Weights of the network in the files of `folder`; scales and other by-products of quantization do not count."""
    from safetensors import safe_open

    total = 0
    for file in weight_files(folder):
        with safe_open(file, "pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 (it is no mapping)
                kind = key.rsplit(".", 1)[-1]
                if kind in {"weight", "bias"}:
                    shape = tensors.get_slice(key).get_shape()
                    total += int.__mul__(*shape) if len(shape) == 2 else shape[0] if shape else 1
                elif kind == "weight_shape":  # packed: several weights in one number
                    total += int(tensors.get_tensor(key).prod())
    return total


def variant_facts(folder: Path) -> dict[str, object]:
    """What a card says of the files themselves."""
    config = json.loads((folder / "config.json").read_text())
    return {
        "weights_digest": weights_digest(folder),
        "parameters": parameters(folder),
        "bytes_on_disk": sum(file.stat().st_size for file in weight_files(folder)),
        "max_model_len": config["max_position_embeddings"],
    }


def _store_as(dtype: str, file: Path, target: Path) -> None:
    """Copy a weight file with its matrices, embeddings and norms in `dtype`, but for quantized ones and scales."""
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(file)
    for key, tensor in tensors.items():
        stored = tensor.is_floating_point() and tensor.element_size() > 1  # FP8 stays
        if stored and key.endswith((".weight", ".bias")):
            tensors[key] = tensor.to(getattr(torch, dtype))
            if not torch.isfinite(tensors[key]).all():
                raise FinishError(f"{key} has values that {dtype} cannot hold: cast to bfloat16 instead")
    save_file(tensors, target, {"format": "pt"})
    target.chmod(0o644)  # safetensors writes for the owner alone; serving may run as someone else
