"""Make one variant's weights and its card, without quality and profile: `python -m compression.build.variant --help`.

Runs in the compression environment. Works in `OUT.part` and renames what it made to OUT at the very end, so an
interrupted build never looks finished; run again, it goes on after the last finished step, see `compression.build.step_checkpoints`.
Progress goes to standard output as JSON lines. Anything that goes wrong and has a known cause is one line on standard
error and exit code 2.
"""

import argparse
import hashlib
import importlib.metadata
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from compression.build.export import finish, variant_facts
from compression.build.source import Source, fetch, identity, parse_source, pinned
from compression.build.step_checkpoints import Kept, claim, keep, last_kept
from compression.errors import exit_code
from compression.hardware import accelerators, compute_dtype
from compression.progress import Report, report_on_stdout
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
    check_groups,
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
    training_sequences,
)
from serve.card import Card, Step, load_card

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CHECKPOINT_FOLDER = "checkpoints"


@dataclass(slots=True)
class Work:
    """What the steps of one build pass on to each other.

    `scratch` is the running step's own folder, gone when it has finished. `dtype` is what the weights are stored in.
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
        KnownError, CardError: with one clear line.
        OSError: the disk is full or cannot be written.
    """
    if out.exists():
        raise BuildRefused(f"{out} exists already: remove it to build it again")
    if (recipe.parent is None) != (parent is None):
        wanted = f"the folder of its parent '{recipe.parent}' (--parent)" if recipe.parent else "a source (--source)"
        raise BuildRefused(f"the recipe '{recipe.name}' needs {wanted}")
    check_installed(recipe)
    if parent is not None:
        check_parent(recipe, parent)
    part = out.with_name(out.name + ".part")
    start = pinned(parse_source(source)) if source else None
    claim(part, _key(recipe, start, parent, text))
    work = Work(recipe, part, report, _once(lambda: load_corpus(text)), start, parent)
    kept = _resume(work, last_kept(part))
    for step in recipe.steps[len(work.done) :]:
        kept = _take(work, step, part)
    report("save", 0, 1, "models")
    card = finish(kept, out, lambda folder: _card(work, folder, name, model, reproduce))
    report("save", 1, 1, "models")
    return card


def _resume(work: Work, kept: Kept | None) -> Kept | None:
    """Load what the last finished step left, or the parent where there is none yet."""
    start = kept.folder if kept else work.parent
    if kept:
        work.done, work.dtype = list(kept.steps), kept.dtype
    elif start:
        work.dtype = model_config(start).get("dtype") or work.dtype
    if start and len(work.done) < len(work.recipe.steps):
        work.model, work.tokenizer = _load_folder(start)
    elif start:  # only the end is missing, and quantized weights load in no other way than by an engine
        work.tokenizer = _load_tokenizer(start)
    return kept


def _take(work: Work, step: object, part: Path) -> Kept:
    """One step, and what it made kept."""
    import torch

    work.scratch = part / f"{len(work.done) + 1}-{step.technique}"
    work.scratch.mkdir(exist_ok=True)
    if not isinstance(step, Load | Cast):
        work.model.to(getattr(torch, compute_dtype()))
    work.done.append(_STEPS[type(step)](work, step))
    _check_finite(work)

    def save(folder: Path) -> None:
        work.model.save_pretrained(folder)
        work.tokenizer.save_pretrained(folder)

    kept = keep(part, tuple(work.done), work.dtype, save)
    # llm-compressor reads the configuration and the tokenizer from where the model says it comes from
    work.model.name_or_path = work.model.config._name_or_path = str(kept.folder)
    return kept


def _load(work: Work, step: Load) -> Step:
    work.report("load", 0, 1, "models")
    work.model, work.tokenizer = fetch(work.source, step.dtype)
    work.dtype = step.dtype
    work.report("load", 1, 1, "models")
    revision = {"revision": work.source.revision} if work.source.revision else {}
    return Step(
        technique="load",
        parameters={"source": f"{work.source.kind}:{work.source.place}", **revision, "dtype": step.dtype},
        tool=_tool("transformers"),
    )


def _cast(work: Work, step: Cast) -> Step:
    import torch

    work.model.to(getattr(torch, step.dtype))
    work.dtype = step.dtype
    return Step(technique="cast", parameters=step.model_dump(exclude={"technique"}), tool=_tool("torch"))


def _prune(work: Work, step: Prune) -> Step:
    from compression.steps.prune import prune
    from compression.steps.vocabulary import prune_vocabulary

    check_prunable(work.model.config.to_dict(), step)
    parameters = step.model_dump(exclude={"technique"}, exclude_none=True)
    if step.layers or step.heads or step.mlp_width:
        rows = work.sequences(step.sequence_length, step.samples)
        parameters |= prune(work.model, rows, step, work.report)
    if step.vocabulary:
        rows = work.sequences(step.sequence_length)
        work.tokenizer = prune_vocabulary(work.model, work.tokenizer, rows, step.vocabulary, work.scratch)
    return Step(technique="prune", parameters=parameters, tool=_tool("torch"))


def _sparsify(work: Work, step: Sparsify) -> Step:
    from compression.steps.sparsify import sparsify, sparsity

    magnitude = step.method == "magnitude"
    rows = [] if magnitude else work.sequences(step.sequence_length, step.samples)
    work.model = sparsify(work.model, rows, step, work.report)
    parameters = step.model_dump(exclude={"technique"}) | {"measured_sparsity": round(sparsity(work.model), 4)}
    return Step(technique="sparsify", parameters=parameters, tool=_tool("torch" if magnitude else "llmcompressor"))


def _lora(work: Work, step: Lora) -> Step:
    from compression.distill.trainer import distill
    from compression.steps.lora import merged, with_additions

    teacher, _ = _load_folder(work.parent)
    student = with_additions(work.model, step, work.recipe.seed)
    rows, checkpoints = work.sequences(step.sequence_length), work.scratch / CHECKPOINT_FOLDER
    trained = distill(
        student, teacher, rows, step.training(), work.recipe.seed, checkpoints,
        lambda _, *progress: work.report("lora", *progress),
    )  # fmt: skip
    work.model = merged(student)
    parameters = step.model_dump(exclude={"technique"}) | {
        "trained_steps": trained.steps,
        "trained_tokens": trained.tokens,
        "trained_seconds": round(trained.seconds),
        "first_loss": round(trained.first_loss, 4),
        "last_loss": round(trained.last_loss, 4),
    }
    return Step(technique="lora", parameters=parameters, tool=_tool("peft"))


def _distill(work: Work, step: Distill) -> Step:
    from compression.distill.multi_gpu import distill_in_processes
    from compression.distill.teacher import TopKCache
    from compression.distill.trainer import distill

    checkpoints = work.scratch / CHECKPOINT_FOLDER
    cache = None
    if step.teacher_top_k:
        cache = TopKCache(work.parent / "top-k", load_card(work.parent).weights_digest)
    sequences = _training_data(work, step)
    if (gpus := len(accelerators())) > 1:
        training = (sequences, step, work.recipe.seed, checkpoints, work.report, cache, gpus)
        trained = distill_in_processes(work.model, work.parent, *training)
    else:
        teacher, _ = _load_folder(work.parent)
        trained = distill(work.model, teacher, sequences, step, work.recipe.seed, checkpoints, work.report, cache)
    parameters = step.model_dump(mode="json", exclude={"technique"}) | {
        "trained_steps": trained.steps,
        "trained_tokens": trained.tokens,
        "trained_seconds": round(trained.seconds),
        "first_loss": round(trained.first_loss, 4),
        "last_loss": round(trained.last_loss, 4),
    }
    return Step(technique="distill", parameters=parameters, tool=_tool("torch"))


def _training_data(work: Work, step: Distill) -> list[list[int]]:
    """The training text, with the parent's completions mixed in where the step asks for them."""
    from compression.distill.teacher_completions import completions_file, mixed, packed, read_completions, spread_out

    text = work.sequences(step.sequence_length)
    if step.data == "text":
        return text
    prompts = spread_out(work.sequences(step.prompt_tokens), step.completions)
    file = completions_file(work.parent, prompts, step.sequence_length, work.recipe.seed)
    written = packed(prompts, read_completions(file, prompts), step.sequence_length)
    return mixed(text, written, step.teacher_share)


def _quantize(work: Work, step: Quantize) -> Step:
    from compression.steps.quantize import quantize

    check_groups(work.model.config.to_dict(), step)
    rows = work.sequences(step.sequence_length, step.samples) if step.calibrates else []
    work.model = quantize(work.model, rows, step, work.report)
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


def _check_finite(work: Work) -> None:
    """Refuse weights that are not numbers before they replace what was kept."""
    import torch

    for name, tensor in work.model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor.float()).all():
            technique = work.done[-1].technique
            hint = _HINTS.get(technique, "the weights it started from or the calibration text are unusual")
            raise BuildRefused(f"the step '{technique}' made weights that are not finite numbers, first {name}: {hint}")


def _card(work: Work, folder: Path, name: str, model: str, reproduce: str) -> Card:
    return Card(
        name=name,
        model=model,
        parent=work.recipe.parent,
        steps=tuple(work.done),
        chars_per_token=_chars_per_token(work),
        seed=work.recipe.seed,
        training_digest=_training_digest(work),
        reproduce=reproduce,
        **variant_facts(folder),
    )


def _chars_per_token(work: Work) -> float:
    rows = held_out_sequences(work.corpus(), work.encode, work.tokenizer.decode, HELD_OUT_LENGTH, HELD_OUT_COUNT)
    return round(sum(len(work.tokenizer.decode(row)) for row in rows) / sum(map(len, rows)), 3)


def _key(recipe: Recipe, source: Source | None, parent: Path | None, text: Path | None) -> str:
    """What an interrupted build must have in common with this one to be gone on with."""
    start = identity(source) if source else ""
    if text and not text.is_file():
        raise TextError(f"cannot read the text file {text}: there is no such file")
    words = hashlib.sha256(text.read_bytes()).hexdigest() if text else "python"
    return recipe_key(recipe, start, load_card(parent).weights_digest if parent else None, words)


def _training_digest(work: Work) -> str | None:
    """Of the text that these steps, else the parent's, may have seen: measuring has to stay away from it."""
    if any(not isinstance(step, Load | Cast) for step in work.recipe.steps):
        return work.corpus().training_digest
    return load_card(work.parent).training_digest if work.parent else None


def _load_folder(folder: Path) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    return fetch(Source("folder", str(folder)), compute_dtype())


def _load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def _tool(package: str) -> str:
    return f"{package} {importlib.metadata.version(package)}"


def _once(make: Callable[[], Corpus]) -> Callable[[], Corpus]:
    made: list[Corpus] = []
    return lambda: made[0] if made else made.append(make()) or made[0]


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
    given = parser.parse_args(arguments)
    report = report_on_stdout()
    words = ["python", "-m", "compression.build.variant", *(sys.argv[1:] if arguments is None else arguments)]

    def work() -> None:
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

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
