"""Measure a variant through the engine that serves it and complete its card: `python -m compression.measure.variant --help`.

Runs in the engine's environment, with the engine arguments of serving. Progress goes to standard output as JSON lines.
Anything that goes wrong and has a known cause is one line on standard error and exit code 2; the card stays as it was.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import psutil

from compression import hardware
from compression.build.family import MEASURED_FILE
from compression.errors import UserError, run_command
from compression.files import write_atomically
from compression.measure import drift
from compression.measure.engine import ServedModel
from compression.measure.human_eval import NAME as HUMAN_EVAL
from compression.measure.human_eval import load_problems, score_code
from compression.measure.profiling import measure_performance, resident_bytes
from compression.measure.quality import (
    VARIANT_TOP,
    HeldOut,
    QualityError,
    ReferenceMissing,
    derive_quality,
    measure_quality,
)
from compression.measure.scoring import score_task
from compression.measure.tasks import TaskError, arithmetic, definitions, load_task
from compression.progress import Report, progress_on_stdout
from compression.text import (
    HELD_OUT_COUNT,
    HELD_OUT_LENGTH,
    Corpus,
    TextError,
    all_ngrams,
    held_out_sequences,
    load_corpus,
    sequences_digest,
    shared_ngrams,
)
from serve.card import Card, Drift, Profile, Quality, TaskScore, load_card

if TYPE_CHECKING:
    from vllm import LLM

Part = Literal["profile", "quality"]


class EngineStartFailed(UserError):
    """The engine does not start with these weights and arguments."""


@dataclass(frozen=True, slots=True)
class MeasureOptions:
    """Options of a measurement.

    `price` is in USD an hour (None: the card's stays), `max_drift` in nats; `allow_code` runs programs that the model
    writes.
    """

    parts: Sequence[Part] = ("profile", "quality")
    price: float | None = None
    text: Path | None = None
    tasks: Sequence[Path] = ()
    built_in_tasks: bool = True
    allow_code: bool = False
    quality_from: str = "kl"
    max_drift: float = drift.MAX_MEAN_DRIFT


def measure(variant: Path, full: Path, engine_args: dict[str, object], options: MeasureOptions, report: Report) -> Card:
    """Start the engine once, measure the requested parts, and return the completed card (it is not written).

    Invalid inputs are refused before the engine starts.

    Raises:
        EngineStartFailed, QualityError, TaskError, TextError, CardError: with one clear line.
        DriftError: the engine's output is too far from the float32 reference.
    """
    card = load_card(variant)
    preparation_started = _uptime_s()
    quality_measurement = _QualityMeasurement(card, variant, full, options) if "quality" in options.parts else None
    preparing_s = _uptime_s() - preparation_started
    report("start", 0, 1, "engines")
    llm = _start_engine(variant, engine_args)
    startup_s = _uptime_s() - preparing_s  # a serving replica prepares no texts
    report("start", 1, 1, "engines")
    profile = card.profile
    if "profile" in options.parts:
        known = card.profile.price_usd_per_hour if card.profile else 0.0
        price = known if options.price is None else options.price
        profile = _profile(llm, engine_args, startup_s, price, card.seed, report)
    quality = quality_measurement.measure(ServedModel(llm), report) if quality_measurement else card.quality
    return card.model_copy(update={"quality": quality, "profile": profile})


def _profile(
    llm: "LLM", engine_args: dict[str, object], startup_s: float, price: float, seed: int, report: Report
) -> Profile:
    config = llm.llm_engine.vllm_config
    speeds = measure_performance(llm, config, seed, report)
    return Profile(
        hardware=hardware.label(),
        engine=_engine_label(engine_args, config.model_config.dtype),
        ttft=speeds.ttft,
        tpot=speeds.tpot,
        prefill_tokens_per_s=round(speeds.prefill_tokens_per_s, 1),
        decode_tokens_per_s=round(speeds.decode_tokens_per_s, 1),
        startup_s=round(startup_s, 1),
        resident_bytes=resident_bytes(),
        peak=speeds.peak,
        price_usd_per_hour=price,
    )


class _QualityMeasurement:
    """The quality measurement of one variant: its texts and tasks, checked before the engine starts."""

    def __init__(self, card: Card, variant: Path, full: Path, options: MeasureOptions) -> None:
        self._variant, self._full, self._options = variant, full, options
        self._is_full = variant.resolve() == full.resolve()
        self._corpus = load_corpus(options.text)
        check_training_text(card, self._corpus)
        training = [document.text for document in self._corpus.training]
        built_in = [arithmetic(), definitions(training)] if options.built_in_tasks else []
        self._tasks = [*built_in, *map(load_task, options.tasks)]
        self._training = all_ngrams(training)
        self._shared = {task.name: shared_ngrams(self._training, task.texts()) for task in self._tasks}
        self._problems = load_problems() if options.allow_code else {}
        names = [task.name for task in self._tasks] + ([HUMAN_EVAL] if self._problems else [])
        if len(set(names)) < len(names):
            raise TaskError(f"two tasks have the same name ({', '.join(names)}): rename one of the files")
        self._full_scores = _full_scores(full)
        _check_quality_from(options.quality_from, names)
        if not self._is_full and options.quality_from.startswith("task:"):
            self._check_full_has(options.quality_from.removeprefix("task:"))

    def measure(self, served: ServedModel, report: Report) -> Quality:
        """Measure quality, drift first: with a wrong engine the other numbers are meaningless."""
        in_full_tokens = with_full_tokens(served, self._variant, self._full)
        held_out = load_held_out(in_full_tokens, self._corpus, self._training)
        drift_record = self._drift(
            served, in_full_tokens.to_model_tokens(held_out.sequences[: drift.SEQUENCES]), report
        )
        quality = measure_quality(in_full_tokens, held_out, self._full, self._is_full, report)
        scores = self._scores(served, report)
        quality = quality.model_copy(update={"task_scores": scores, "drift": drift_record})
        full_scores = scores if self._is_full else self._full_scores
        return derive_quality(quality, self._options.quality_from, full_scores)

    def _drift(self, served: ServedModel, sequences: Sequence[Sequence[int]], report: Report) -> Drift | None:
        rows = [sequence[: drift.LENGTH] for sequence in sequences]
        top = served.top_logprobs(rows, 1, lambda _: None)
        if (result := drift.compute_reference(self._variant, rows, top, report)) is None:
            gigabytes = 1.2 * drift.float32_bytes(self._variant) / 1e9
            print(f"drift is not measured: its reference needs {gigabytes:.0f} GB of free memory", file=sys.stderr)
            return None
        reference, label = result
        return drift.measure_drift(top, reference, self._options.max_drift, label)

    def _scores(self, served: ServedModel, report: Report) -> dict[str, TaskScore]:
        total = sum(len(task.items) for task in self._tasks) + len(self._problems)
        before = 0
        scores = {}
        for task in self._tasks:
            scores[task.name] = score_task(
                served, task, self._shared[task.name], lambda done, b=before: report("tasks", b + done, total, "items")
            )
            before += len(task.items)
        if self._problems:
            scores[HUMAN_EVAL] = score_code(
                served, self._problems, lambda done, b=before: report("tasks", b + done, total, "items")
            )
        return scores

    def _check_full_has(self, name: str) -> None:
        digest = next((task.digest for task in self._tasks if task.name == name), None)
        full_score = self._full_scores.get(name)
        if full_score is None or (digest is not None and full_score.set_digest != digest):
            raise ReferenceMissing(
                f"'full' was not evaluated on the same items of the task '{name}': first run "
                f"'gearbox evaluate {self._full} --full {self._full}' with the same tasks"
            )


def check_training_text(card: Card, corpus: Corpus) -> None:
    """Refuse text whose training side is not what the variant was trained on: then nothing proves them disjoint.

    Raises:
        TextError: the digests differ.
    """
    if card.training_digest not in (None, corpus.training_digest):
        raise TextError(
            f"'{card.name}' was calibrated or trained on other text than {corpus.description}: evaluate it with the same "
            "Python version or --text that it was built with"
        )


def with_full_tokens(served: ServedModel, variant: Path, full: Path) -> ServedModel:
    """`served` as it is, or through full's tokens where the vocabulary was pruned."""
    sizes = {json.loads((folder / "config.json").read_text())["vocab_size"] for folder in (variant, full)}
    if len(sizes) == 1:
        return served
    from transformers import AutoTokenizer

    from compression.measure.retokenization import Retokenized

    return Retokenized(served, AutoTokenizer.from_pretrained(full))


def load_held_out(served: ServedModel, corpus: Corpus, training: Set[int]) -> HeldOut:
    """The held-out sequences as the served model's token ids, counted again to share nothing with the training text.

    Args:
        training: the n-grams of the corpus's training side.

    Raises:
        TextError: nothing is left after removing what overlaps, or something was overlooked.
    """
    length = min(HELD_OUT_LENGTH, served.max_model_len - 1)
    sequences = held_out_sequences(corpus, served.encode, served.decode, length, HELD_OUT_COUNT)
    shared = shared_ngrams(training, map(served.decode, sequences))
    if shared:
        raise TextError(
            f"{shared} runs of 13 words of the held-out text occur in the training text of {corpus.description}"
        )
    name = f"held-out {corpus.description}, {len(sequences)} sequences of {len(sequences[0])} tokens"
    return HeldOut(sequences, name, sequences_digest(sequences), corpus.training_digest, shared)


def _full_scores(full: Path) -> Mapping[str, TaskScore]:
    quality = load_card(full).quality
    return quality.task_scores if quality else {}


def _check_quality_from(quality_from: str, tasks: Sequence[str]) -> None:
    if quality_from not in ("kl", "agreement", *(f"task:{name}" for name in tasks)):
        raise QualityError(
            f"no quality from '{quality_from}': give kl, agreement or task:NAME with NAME one of {', '.join(tasks)}"
        )


def _start_engine(variant: Path, engine_args: dict[str, object]) -> "LLM":
    """The engine, after its first answer."""
    from vllm import LLM, SamplingParams, TokensPrompt

    try:
        llm = LLM(model=str(variant), **{"max_logprobs": VARIANT_TOP, **engine_args})
        llm.generate([TokensPrompt(prompt_token_ids=[1] * 8)], SamplingParams(max_tokens=1), use_tqdm=False)
    except Exception as error:  # vLLM raises many kinds; the log above has the trace of its processes
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise EngineStartFailed(f"the engine does not start with {variant.name}: {reason}") from error
    return llm


def _engine_label(engine_args: dict[str, object], dtype: object) -> str:
    import vllm

    return f"vllm {vllm.__version__}, {str(dtype).removeprefix('torch.')}, {json.dumps(engine_args, sort_keys=True)}"


def _uptime_s() -> float:
    import time

    return time.time() - psutil.Process().create_time()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m compression.measure.variant", description=__doc__.splitlines()[0])
    parser.add_argument("--variant", type=Path, required=True, help="folder of the variant")
    parser.add_argument("--full", type=Path, help="folder of the variant it is compared with; itself if not given")
    parser.add_argument("--engine-args", type=json.loads, default={}, help="vLLM engine arguments, JSON")
    parser.add_argument("--price-usd-per-hour", type=float, help="without it, the price on the card stays")
    parser.add_argument("--text", type=Path, help="text file to measure on instead of Python's documentation")
    parser.add_argument("--only", choices=["profile", "quality"], help="measure this part of the card alone")
    parser.add_argument("--tasks", type=Path, action="append", default=[], help="JSON lines with prompt and answer")
    parser.add_argument("--no-built-in-tasks", action="store_true", help="leave out arithmetic and definitions")
    parser.add_argument("--allow-code", action="store_true", help="run programs that the model writes, for human-eval")
    parser.add_argument("--quality-from", default="kl", help="kl, agreement or task:NAME")
    parser.add_argument(
        "--max-drift", type=float, default=drift.MAX_MEAN_DRIFT, help="nats from float32 that are accepted"
    )
    parser.add_argument(
        "--key", default="", help="stored beside the card: identifies what these measurements were made with"
    )
    parsed = parser.parse_args(arguments)
    report = progress_on_stdout()
    options = MeasureOptions(
        parts=(parsed.only,) if parsed.only else ("profile", "quality"),
        price=parsed.price_usd_per_hour,
        text=parsed.text,
        tasks=parsed.tasks,
        built_in_tasks=not parsed.no_built_in_tasks,
        allow_code=parsed.allow_code,
        quality_from=parsed.quality_from,
        max_drift=parsed.max_drift,
    )

    def action() -> None:
        card = measure(parsed.variant, parsed.full or parsed.variant, parsed.engine_args, options, report)
        card.save(parsed.variant)
        if not parsed.only:  # a part measured anew leaves what the rest was measured with
            record = {"key": parsed.key, "engine_args": parsed.engine_args}
            write_atomically(parsed.variant / MEASURED_FILE, json.dumps(record, indent=2) + "\n")

    return run_command(action)


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    # the engine's threads may abort an orderly exit, after everything has been written
    for child in psutil.Process().children(recursive=True):
        child.kill()
    os._exit(code)
