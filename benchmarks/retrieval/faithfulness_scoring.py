"""Calibrate and measure faithfulness scoring, its weights and threshold: `python -m benchmarks.retrieval.faithfulness_scoring`.

One half of the texts, and the calibration part of the tables and FAQs, are for calibration; the others are the test set. Takes about
five minutes on one core.
"""

import argparse
import asyncio
import random
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lib.processes import command
from benchmarks.reporting import grounding_plots
from benchmarks.reporting.results import Progress, save
from benchmarks.retrieval.corpora import embedder_at
from benchmarks.retrieval.faithfulness_claims import TOP_K, Embed, Labelled, of_faqs, of_tables, of_texts
from benchmarks.retrieval.labelled_texts import entries, fetched
from benchmarks.retrieval.packages import NoPackage
from compression.build.family import BuildError
from compression.measure.intervals import wilson_ci95
from serve.retrieval.embedder import Embedder
from serve.retrieval.verify import faithfulness as scoring
from serve.retrieval.verify.sentences import sentences

SEED = 0
SIZES = {"foldoc": 1000, "python": 700, "postgresql": 600, "facts": 112}
RIDGE = 1e-2  # of the regressions, on standardised features
ROUNDS = 12  # alternations of selecting the best passage by the weights, and fitting the weights to it
BATCH = 64

Array = np.ndarray[Any, np.dtype[Any]]


def embedded(embedder: Embedder, texts: Sequence[str], what: str) -> Array:
    """Unit vectors of `texts`, with a progress bar."""
    parts, started = [], time.monotonic()
    for at in range(0, len(texts), BATCH):
        parts.append(embedder.embed(texts[at : at + BATCH]))
        done = min(at + BATCH, len(texts))
        left = (time.monotonic() - started) / done * (len(texts) - done)
        print(f"\r  {what}: {done}/{len(texts)}, about {left:.0f} s left ", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return np.concatenate(parts)


def fitted(rows: Array, labels: Array, weights: Array) -> Array:
    """Logistic regression by Newton's method with a ridge: bias and weights for unscaled features."""
    middle, scale = rows.mean(0), np.maximum(rows.std(0), 1e-6)
    x = np.column_stack([np.ones(len(rows)), (rows - middle) / scale])
    ridge = np.diag([0.0, *[RIDGE * weights.sum()] * rows.shape[1]])
    coefficients = np.zeros(x.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-x @ coefficients))
        step = np.linalg.solve(
            (x.T * (weights * p * (1 - p))) @ x + ridge, x.T @ (weights * (labels - p)) - ridge @ coefficients
        )
        coefficients += step
        if np.abs(step).max() < 1e-9:
            break
    slopes = coefficients[1:] / scale
    return np.array([coefficients[0] - slopes @ middle, *slopes])


def scored(weights: Array, rows: Array) -> Array:
    """Predicted probability of each row."""
    return 1 / (1 + np.exp(-(weights[0] + rows @ weights[1:])))


def auc(scores: Array, labels: Array) -> float:
    """Probability that a supported item scores above an unsupported one (Mann and Whitney 1947)."""
    yes, no = scores[labels], scores[~labels]
    return float((yes[:, None] > no).mean() + 0.5 * (yes[:, None] == no).mean())


def best_threshold(scores: Array, labels: Array, balanced: Array) -> float:
    """Threshold, in hundredths, with the largest F1 of marking unsupported items."""

    def f1(at: float) -> float:
        marked = scores < at
        hits = balanced[marked & ~labels].sum()
        return 2 * hits / (balanced[marked].sum() + balanced[~labels].sum())

    return max((i / 100 for i in range(5, 96)), key=f1)


def rates(scores: Array, labels: Array, at: float) -> dict[str, object]:
    """Precision, recall and F1 of marking unsupported items, with 95% intervals."""
    marked, wrong = scores < at, ~labels
    hits = int((marked & wrong).sum())
    row: dict[str, object] = {"items": len(labels), "unsupported": int(wrong.sum())}
    if marked.any() and wrong.any() and labels.any():
        row |= {
            "precision": _share(hits, int(marked.sum())),
            "f1": round(2 * hits / int(marked.sum() + wrong.sum()), 3),
        }
        row |= {"auc": round(auc(scores, labels), 4)}
    if wrong.any():
        row |= {"recall": _share(hits, int(wrong.sum()))}
    if labels.any():
        row |= {"false_alarms": _share(int((marked & labels).sum()), int(labels.sum()))}
    return row


def measured(scores: Array, labels: Array, kinds: Sequence[str], at: float) -> dict[str, object]:
    """Rates overall and by kind, precision-recall curve, and probability calibration."""
    of = np.array(kinds)
    curve = []
    for step in range(1, 100):
        marked = scores < step / 100
        hits = int((marked & ~labels).sum())
        if marked.any():
            curve.append([step / 100, round(hits / int(marked.sum()), 4), round(hits / int((~labels).sum()), 4)])
    bins = np.minimum((scores * 10).astype(int), 9)
    return {
        "threshold": at,
        "all": rates(scores, labels, at),
        "kinds": {kind: rates(scores[of == kind], labels[of == kind], at) for kind in sorted(set(kinds))},
        "brier": round(float(((scores - labels) ** 2).mean()), 4),
        "calibration": [
            [
                round(float(scores[bins == i].mean()), 3),
                round(float(labels[bins == i].mean()), 3),
                int((bins == i).sum()),
            ]
            for i in range(10)
            if (bins == i).any()
        ],
        "curve": curve,
    }


def feature_rows(embed: Embed, labelled: Sequence[Labelled]) -> tuple[Array, Array]:
    """Features of each candidate of `scoring.check_answer`: rows, and the index of each row's sentence."""
    made = [_claim(one) for one in labelled]
    texts = list(dict.fromkeys(text for claim in made for text in claim.texts()))
    vectors = dict(zip(texts, embed(texts), strict=True))
    rows, owner = [], []
    for k, claim in enumerate(made):
        found = [features for _, features in claim.features(vectors)]
        rows += found
        owner += [k] * len(found)
    return np.array(rows), np.array(owner)


def _claim(one: Labelled) -> scoring.Claim:
    return scoring.Claim(scoring.claim_text(one.text), one.question, scoring.Evidence(one.passages))


def entailment(embed: Embed, labelled: Sequence[Labelled]) -> dict[str, object]:
    """Entailment of a sentence by the passages: calibrate on its best candidate, test like `scoring.check_answer`."""
    rows, owner = feature_rows(embed, labelled)
    labels = np.array([one.supported for one in labelled])
    test = np.array([not one.calibration for one in labelled])
    sources = np.array([one.source for one in labelled])
    starts = np.searchsorted(owner, np.arange(len(labelled) + 1))
    balanced = _balance(labels[~test], sources[~test])
    model = np.array([0.0, 1.0, *[0.0] * (len(scoring.Features._fields) - 1)])
    for _ in range(ROUNDS):  # the best candidate depends on the weights
        scores = scored(model, rows)
        best = np.array([begin + scores[begin:end].argmax() for begin, end in pairwise(starts)])
        model = np.round(fitted(rows[best[~test]], labels[~test].astype(float), balanced), 3)
    top = np.maximum.reduceat(scored(model, rows), starts[:-1])
    at = best_threshold(top[~test], labels[~test], balanced)
    kinds = [one.kind for one, tested in zip(labelled, test, strict=True) if tested]
    return {
        "weights": model.tolist(),
        **measured(top[test], labels[test], kinds, at),
        "sources": {
            name: rates(top[test & (sources == name)], labels[test & (sources == name)], at)
            for name in sorted(set(sources))
        },
        "calibrated_on": int((~test).sum()),
    }


def speed(passages: Sequence[str]) -> dict[str, float]:
    """Guard latency in ms, without the embedding: 20 passages of about 200 tokens, a six-sentence answer."""
    long = [scoring.Passage("", " ".join(passages[3 * i : 3 * i + 3])[:900]) for i in range(20)]
    answer = " ".join(passages[i][a:b] for i in range(6) for a, b in sentences(passages[i])[1:2])

    async def embed(texts: Sequence[str]) -> Array:
        return np.zeros((len(texts), 384), np.float32)

    def median(work: Callable[[], object]) -> float:
        times = []
        for _ in range(51):
            started = time.perf_counter()
            work()
            times.append((time.perf_counter() - started) * 1000)
        return round(float(np.median(times)), 3)

    return {
        "check_4_ms": median(lambda: asyncio.run(scoring.check_answer(answer, long[:4], embed))),
        "check_20_ms": median(lambda: asyncio.run(scoring.check_answer(answer, long, embed))),
    }


def _balance(labels: Array, sources: Array) -> Array:
    """Sample weights that balance both classes in each source, and the sources."""
    weights = np.ones(len(labels))
    for name in set(sources):
        for label in (True, False):
            group = (sources == name) & (labels == label)
            weights[group] = 1 / max(group.sum(), 1)
    return weights * len(labels) / weights.sum()


def _share(hits: int, items: int) -> dict[str, object]:
    low, high = wilson_ci95(hits, items)
    return {"share": round(hits / items, 3), "ci95": [round(low, 3), round(high, 3)], "n": items}


def main() -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--embedder", type=Path, help="the folder of an exported model; default: the platform's own")
    folder = parser.parse_args().embedder
    with command((NoPackage, BuildError, OSError), "nothing was saved"):
        progress = Progress([("texts", 30), ("entailment", 100), ("speed", 2)])
        progress.step("texts, as Debian packages")
        draw = random.Random(SEED)
        all_entries = entries(fetched(), draw, SIZES)
        embedder = Embedder(embedder_at(folder))
        vectors: dict[str, Array] = {}

        def embed(texts: Sequence[str]) -> Array:
            if new := [text for text in dict.fromkeys(texts) if text not in vectors]:
                vectors.update(zip(new, embedded(embedder, new, "texts"), strict=True))
            return np.array([vectors[text] for text in texts])

        labelled = list(of_texts(all_entries, embed, draw))
        for part in ("calibration", "development"):
            labelled += [*of_tables(part), *of_faqs(part, embed)]
        claimed = [one for one in labelled if _claim(one).claims_something]  # others are never marked
        print(f"  {len(labelled) - len(claimed)} of {len(labelled)} sentences claim nothing")
        progress.step(f"entailment of {len(claimed)} sentences")
        entailments = entailment(embed, claimed)
        progress.step("speed")
        times = speed([entry.passage for entry in all_entries])
    print(f"ENTAILMENT = {entailments['weights']}, threshold {entailments['threshold']}: {entailments['sources']}")
    result = {"seed": SEED, "top_k": TOP_K, "entailment": entailments, "speed": times}
    save("guard", result)
    grounding_plots.guard(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
