"""Compare distillation losses with training on hard labels: `python -m benchmarks.compression.distillation`.

The same pruned student, the same tokens in the same order, several seeds; only the loss differs. Each finished run is a line in
`runs.jsonl` in the cache, and an unfinished run resumes from its checkpoint, so it can be interrupted at any time.
Measured with transformers, not with the serving engine: many small runs, each of weights that are never served.
"""

import argparse
import copy
import hashlib
import json
import math
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.lib.processes import RESUMES, command
from benchmarks.reporting import plots
from benchmarks.reporting.results import Progress, save, spread
from benchmarks.systems.full_weights import CONFIG, NoWeights, full_weights
from compression import hardware
from compression.build.source import SourceError
from compression.recipe.schema import Distill
from compression.text import (
    HELD_OUT_COUNT,
    HELD_OUT_LENGTH,
    Corpus,
    TextError,
    held_out_sequences,
    load_corpus,
    sequences_digest,
    training_sequences,
)
from deployments.state import cache_folder
from serve.card import load_card

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WORK = cache_folder() / "benchmarks" / "distillation"
RUNS = WORK / "runs.jsonl"
METRICS = ("kl_to_full", "top1_agreement", "perplexity")
# as in compression/recipes/distilled.yaml
COMMON = {"technique": "distill", "learning_rate": 1e-3, "warmup": 0.05, "batch": 4, "sequence_length": 256}
INFLUENCE_SAMPLES = 16


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to train the student."""

    label: str
    changes: Mapping[str, object] = field(default_factory=dict)
    usual: bool = True  # the default


SETTINGS = {
    "hard": Setting("hard labels only", {"alpha": 1.0, "beta": 0.0}),
    "tau-1": Setting("teacher, τ = 1", {"tau": 1.0}),
    "tau-2": Setting("teacher, τ = 2", {"tau": 2.0}),
    "tau-4": Setting("teacher, τ = 4", {"tau": 4.0}),
    "both": Setting("α = β = 0.5, τ = 1", {"alpha": 0.5, "beta": 0.5}, usual=False),
    "reverse": Setting("reverse KL", {"divergence": "reverse"}, usual=False),
    "js": Setting("Jensen-Shannon", {"divergence": "js"}, usual=False),
    "hidden": Setting("teacher and its hidden states", {"hidden": 1.0}, usual=False),
    "top-64": Setting("teacher's top 64 tokens", {"teacher_top_k": 64}, usual=False),
}


@dataclass(slots=True)
class Bench:
    """Inputs that all runs share."""

    full: Path
    teacher: "PreTrainedModel"
    student: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    corpus: Corpus
    held_out: list[list[int]]
    length: int

    def encode(self, text: str) -> list[int]:
        """Token ids without special tokens."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        return ids

    def training(self, seed: int) -> list[list[int]]:
        """The training text in the order of `seed`."""
        return training_sequences(self.corpus, self.encode, self.length, self.tokenizer.eos_token_id or 0, seed)


def prepare(full: Path, layers: int, held_out: int, length: int, text: Path | None) -> Bench:
    """The teacher, its pruned student and the held-out text."""
    from compression.build.source import Source, load_source
    from compression.steps.prune import block_influence, keep_layers, layers_to_keep

    teacher, tokenizer = load_source(Source("folder", str(full)), hardware.compute_dtype())
    bench = Bench(full, teacher, copy.deepcopy(teacher), tokenizer, load_corpus(text), [], length)
    longest = min(HELD_OUT_LENGTH, teacher.config.max_position_embeddings)
    bench.held_out = held_out_sequences(bench.corpus, bench.encode, tokenizer.decode, longest, held_out)
    influence = block_influence(bench.student, bench.training(0)[:INFLUENCE_SAMPLES], lambda: None)
    keep_layers(bench.student, layers_to_keep(influence, layers))
    return bench


def measure(
    bench: Bench, names: Sequence[str], seeds: Sequence[int], budget: Mapping[str, object], runs: Path, work: Path
) -> dict[str, object]:
    """Run every setting with every seed, except those in `runs`. Returns the result without the machine."""
    plan = [("before", 0), *((name, seed) for seed in seeds for name in names)]
    progress = Progress([(f"{name}, seed {seed}", _estimate_s(name, budget)) for name, seed in plan])
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for name, seed in plan:
        key = _key(bench, name, seed, budget)
        if (known := _known(runs).get(key)) is not None:
            progress.skip(f"{name}, seed {seed}: {_line(known)}")
            rows[name, seed] = known
            continue
        progress.step(f"{name}, seed {seed}")
        rows[name, seed] = row = {"key": key, "setting": name, "seed": seed, **_run(bench, name, seed, budget, work)}
        _add_line(runs, json.dumps(row))
        print(f"    {_line(row)}", flush=True)
    return {
        "size": {"seeds": list(seeds), **budget, "layers": bench.student.config.num_hidden_layers},
        "teacher": {"layers": bench.teacher.config.num_hidden_layers, "weights": load_card(bench.full).weights_digest},
        "measured_with": _measured_with(),
        "quality_set": (
            f"held-out {bench.corpus.description}, {len(bench.held_out)} sequences of {len(bench.held_out[0])} tokens "
            f"({sequences_digest(bench.held_out)[:19]})"
        ),
        "before": {metric: rows["before", 0][metric] for metric in METRICS},
        "settings": {name: _summary(name, [rows[name, seed] for seed in seeds], rows, seeds) for name in names},
    }


def evaluate(
    teacher: "PreTrainedModel", student: "PreTrainedModel", sequences: Sequence[Sequence[int]]
) -> dict[str, float]:
    """KL(teacher || student) per token over the whole vocabulary in nats, top-1 agreement, and the student's perplexity."""
    import torch
    from torch.nn.functional import cross_entropy

    from compression.distill.losses import forward_kl, soften

    kl, agreement, surprise = [], [], []
    with torch.inference_mode():
        for sequence in sequences:
            ids = torch.tensor([sequence])
            teacher_logits, student_logits = (
                model(ids, use_cache=False).logits[0, :-1].float() for model in (teacher, student)
            )
            kl.append(forward_kl(soften(teacher_logits, 1.0), soften(student_logits, 1.0)).item())
            agreement.append((teacher_logits.argmax(-1) == student_logits.argmax(-1)).double().mean().item())
            surprise.append(cross_entropy(student_logits, ids[0, 1:]).item())
    mean = {"kl_to_full": kl, "top1_agreement": agreement, "surprise": surprise}
    kl_to_full, top1, nats = (sum(values) / len(values) for values in mean.values())
    return {"kl_to_full": kl_to_full, "top1_agreement": top1, "perplexity": math.exp(nats)}


@dataclass(slots=True)
class Ticker:
    """Print the progress of one run from time to time."""

    every_s: float = 30.0
    started: float = field(default_factory=time.monotonic)
    said: float = field(default_factory=time.monotonic)
    first: int | None = None

    def report(self, stage: str, done: int, total: int, unit: str) -> None:
        """A `compression.progress.Report`."""
        now = time.monotonic()
        self.first = done - 1 if self.first is None else self.first  # a resumed run does not start at 0
        if now - self.said >= self.every_s:
            self.said = now
            left = (now - self.started) / (done - self.first) * max(total - done, 0)
            print(f"    {stage} {done}/{total} {unit}, about {left / 60:.1f} minutes left of this run", flush=True)


def _run(bench: Bench, name: str, seed: int, budget: Mapping[str, object], work: Path) -> dict[str, object]:
    from compression.distill.teacher import TopKCache
    from compression.distill.trainer import distill

    student = copy.deepcopy(bench.student)
    if name == "before":
        return {"trained_tokens": 0, "seconds": 0.0, **evaluate(bench.teacher, student, bench.held_out)}
    settings = _settings(name, budget, bench.length)
    cache = TopKCache(work / "top-k", load_card(bench.full).weights_digest)
    place = work / _key(bench, name, seed, budget)
    report = Ticker().report
    trained = distill(student, bench.teacher, bench.training(seed), settings, seed, place, report, cache)
    row = {"trained_tokens": trained.tokens, "seconds": round(trained.seconds, 1)}
    row |= evaluate(bench.teacher, student, bench.held_out)
    shutil.rmtree(place, ignore_errors=True)
    return row


def _settings(name: str, budget: Mapping[str, object], length: int) -> Distill:
    return Distill.model_validate({**COMMON, "sequence_length": length, **SETTINGS[name].changes, **budget})


def _summary(
    name: str,
    rows: Sequence[Mapping[str, Any]],
    found: Mapping[tuple[str, int], Mapping[str, Any]],
    seeds: Sequence[int],
) -> dict[str, object]:
    """Summary over the seeds: each metric, and its difference from hard labels with the same seed."""
    summary: dict[str, object] = {"label": SETTINGS[name].label, "changes": dict(SETTINGS[name].changes)}
    summary |= {metric: spread([row[metric] for row in rows], 4) for metric in METRICS}
    if all(("hard", seed) in found for seed in seeds):
        pairs = [(row, found["hard", seed]) for row, seed in zip(rows, seeds, strict=True)]
        summary["over_hard"] = {metric: spread([a[metric] - b[metric] for a, b in pairs], 4) for metric in METRICS}
    summary["tokens_per_s"] = spread([row["trained_tokens"] / max(row["seconds"], 0.1) for row in rows], 0)
    summary["runs"] = [{key: row[key] for key in ("seed", "trained_tokens", "seconds", *METRICS)} for row in rows]
    return summary


def _key(bench: Bench, name: str, seed: int, budget: Mapping[str, object]) -> str:
    """Content hash of everything that changes a run's numbers."""
    content = {
        "settings": None if name == "before" else _settings(name, budget, bench.length).model_dump(mode="json"),
        "seed": seed,
        "teacher": load_card(bench.full).weights_digest,
        "layers": bench.student.config.num_hidden_layers,
        "text": bench.corpus.digest,
        "held_out": sequences_digest(bench.held_out),
        "measured_with": _measured_with(),
        "hardware": hardware.label(),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]


def _known(runs: Path) -> dict[str, dict[str, Any]]:
    """Finished runs by key; a truncated line is ignored."""
    lines = runs.read_text().splitlines(True) if runs.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("}\n")]
    return {row["key"]: row for row in rows}


def _add_line(runs: Path, line: str) -> None:
    runs.parent.mkdir(parents=True, exist_ok=True)
    cut_off = runs.exists() and not runs.read_text().endswith("\n")
    with runs.open("a") as lines:
        lines.write("\n" * cut_off + line + "\n")


def _measured_with() -> str:
    import transformers

    return f"transformers {transformers.__version__} in {hardware.compute_dtype()}, not the serving engine"


def _estimate_s(name: str, budget: Mapping[str, Any]) -> float:
    by_tokens = budget["tokens"] / 150 if budget.get("tokens") else math.inf
    by_time = budget["minutes"] * 60 if budget.get("minutes") else math.inf
    return 30.0 + (0.0 if name == "before" else min(by_tokens, by_time))


def _line(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{metric} {row[metric]:.4f}" for metric in METRICS)


def main() -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    usual = [name for name, setting in SETTINGS.items() if setting.usual]
    parser.add_argument(
        "--settings", nargs="+", choices=SETTINGS, default=usual, metavar="NAME", help=", ".join(SETTINGS)
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--tokens", type=int, help="budget of each run; 50,000 unless --minutes is given")
    parser.add_argument(
        "--minutes", type=float, help="budget of each run; settings then see different numbers of tokens"
    )
    parser.add_argument("--layers", type=int, default=20, help="layers the student keeps")
    parser.add_argument("--held-out", type=int, default=HELD_OUT_COUNT, help="sequences to measure on")
    parser.add_argument("--full", type=Path, help="folder of the teacher; else the one that `gearbox up` has built")
    parser.add_argument("--text", type=Path, help="text file instead of Python's documentation")
    args = parser.parse_args()
    tokens = args.tokens or (None if args.minutes else 50_000)
    budget = {"tokens": tokens, "minutes": args.minutes}
    from compression.distill.trainer import DistillError
    from compression.steps.model_parts import PruneError

    with command((NoWeights, SourceError, TextError, PruneError, DistillError), RESUMES):
        _, full = full_weights(CONFIG, args.full)
        bench = prepare(full, args.layers, args.held_out, int(COMMON["sequence_length"]), args.text)
        result = measure(bench, args.settings, args.seeds, budget, RUNS, WORK)
    save("distillation", result)
    plots.distillation(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
