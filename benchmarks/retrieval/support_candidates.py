"""Compare scores of whether passages support an answer: `python -m benchmarks.retrieval.support_candidates`.

Reads what `benchmarks.retrieval.abstention` retrieved for the parts `calibration` and `development`; combinations are fitted on the
first and measured on the second. Scores: the platform's own (`platform`), what retrieval has (cosine, keyword and fused rank), the served model's pointwise mutual
information of question and passage, and how much of the question's rare tokens the passage has. The area under the ROC curve (AUC) is
the probability that an answerable question scores higher than an unanswerable one.
"""

import argparse
import math
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from rich.progress import track
from tokenizers import Tokenizer

from benchmarks.lib.processes import command
from benchmarks.retrieval import faq_corpus, table_corpus
from benchmarks.retrieval.abstention import ANSWERABLE, saved
from benchmarks.retrieval.corpora import embedder_at
from benchmarks.retrieval.faithfulness_scoring import auc, fitted, scored
from benchmarks.retrieval.packages import NoPackage
from benchmarks.systems.full_weights import CONFIG, NoWeights, full_weights

PASSAGES = 1  # scored with the model, in the order of the cosine
TERMS = 3  # most surprising words of a question
PER_KIND = 50  # questions of each kind and part that are scored with the model
SEED = 20
NEGATIVES = ("other source", "left out", "near miss")

Array = np.ndarray[Any, np.dtype[Any]]
Row = Mapping[str, Any]  # of `abstention.Asked`, as JSON


@dataclass(slots=True)
class Scored:
    """A question with the features of its best passages."""

    row: Row
    features: dict[str, float]


class Surprisal:
    """Log-probabilities of a question's tokens under the served model, with and without a passage before it."""

    def __init__(self, folder: Path) -> None:
        import torch  # takes seconds, and most scores need no model
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.set_num_threads(1)
        self._torch = torch
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def of(self, question: str, source: str | None) -> tuple[list[int], Array, Array]:
        """Token IDs of the question, the log-probability of each, and the index of the word that each is part of."""
        chat = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": "\0"}], tokenize=False, add_generation_prompt=False
        ).split("\0")[0]
        before = f'{chat}Source 1, {source}"\n\nQuestion:' if source else f"{chat}Question:"
        prefix = self._tokenizer(before, add_special_tokens=False)["input_ids"]
        ids = self._tokenizer(f" {question}", add_special_tokens=False)["input_ids"]
        torch = self._torch
        with torch.inference_mode():
            logits = self._model(torch.tensor([[*prefix, *ids]]), logits_to_keep=len(ids) + 1).logits[0, :-1].float()
            chosen = torch.log_softmax(logits, -1).gather(1, torch.tensor(ids)[:, None])[:, 0]
        starts = [token.startswith(("Ġ", "▁")) for token in self._tokenizer.convert_ids_to_tokens(ids)]
        return ids, chosen.numpy(), np.cumsum(starts)

    def text(self, ids: Sequence[int]) -> str:
        """Text of tokens."""
        return str(self._tokenizer.decode(ids))


def source_text(hit: Mapping[str, Any]) -> str:
    """A passage as the prompt quotes it."""
    return f'{hit["title"]}: "{hit["content"]}'


class Rarity:
    """Rarity of words in one collection, from its texts: inverse document frequency; a word that it lacks is the rarest."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._documents = len(texts)
        self._counts = Counter(word for text in texts for word in set(words(text)))
        self._known = {prefix(word) for word in self._counts}

    def of(self, word: str) -> float:
        """1 for a word that the collection lacks, towards 0 for one in every text."""
        return math.log(1 + self._documents / (0.5 + self._counts[word])) / math.log(1 + self._documents / 0.5)

    def known(self, word: str) -> bool:
        """Whether a word with the same beginning is in the collection."""
        return prefix(word) in self._known


def words(text: str) -> list[str]:
    """Words and numbers, in any language; parts of names like P-440 stay together."""
    return re.findall(r"\w+(?:[-+./#]\w+|[+#]+)*", text.casefold())


def prefix(word: str) -> str:
    """What inflected forms of a word share: its beginning; the whole word when it is short or has a digit."""
    return word if len(word) < 5 or re.search(r"\d", word) else word[: max(4, round(len(word) * 0.7))]


def overlap(question: str, passage: str, rarity: Rarity, pieces: Callable[[str], int] = len) -> dict[str, float]:
    """How much of the question's words, weighted by rarity, the passage has; the rarest that it lacks; numbers that it lacks.

    Args:
        pieces: number of tokens of a word: names and part numbers have more than the words of a language.
    """
    known = set(words(passage)) | {part for word in words(passage) for part in re.split(r"[-+./#]", word)}
    beginnings = {prefix(word) for word in known}
    weights = {word: rarity.of(word) for word in words(question)}
    missing = {word: weight for word, weight in weights.items() if word not in known and prefix(word) not in beginnings}
    total = sum(weights.values())
    return {
        "coverage": 1 - sum(missing.values()) / total if total else 0.0,
        "rarest missing": -max(missing.values(), default=0.0),
        "missing number": -float(any(re.search(r"\d", word) for word in missing)),
        "unknown": -float(sum(not rarity.known(word) for word in missing)),
        "missing pieces": -float(sum(pieces(word) - 1 for word in missing)),
        "unknown pieces": -float(sum(pieces(word) - 1 for word in missing if not rarity.known(word))),
    }


def unknown_surprisal(texts: Sequence[str], surprisals: Sequence[float], rarity: Rarity) -> float:
    """Surprisal, in nats, of the most surprising word of the question that the collection lacks.

    A name or a number that no text has makes the question unanswerable; a word of the language that no text has does not. The
    model tells them apart without a passage, in any language that it knows.
    """
    unknown = (
        surprisal
        for text, surprisal in zip(texts, surprisals, strict=True)
        if any(not rarity.known(part) for word in words(text) for part in re.split(r"[/+]", word) if part)
    )
    return max(unknown, default=0.0)


def gains(ids: Sequence[int], words: Array, alone: Array, given: Array) -> dict[str, float]:
    """Pointwise mutual information of the question's tokens and the passage, in nats.

    Of whole words, those count that are the most surprising without the passage: names, numbers and terms.
    """
    totals = [(float(-alone[words == i].sum()), float((given - alone)[words == i].sum())) for i in np.unique(words)]
    terms = [gain / surprise for surprise, gain in sorted(totals, reverse=True)[:TERMS]]
    gain = given - alone
    surprise = -alone
    # token IDs of a byte-pair encoding are in the order of its merges: later ones are rarer
    rare = np.log1p(np.asarray(ids))
    rare = np.maximum(rare - np.log1p(300), 0)
    return {
        "pmi terms": float(np.mean(terms)),
        "pmi least term": min(terms),
        "pmi mean": float(gain.mean()),
        "pmi sum": float(gain.sum()),
        "pmi relative": float(gain.sum() / surprise.sum()),
        "pmi rare": float((gain * rare).sum() / max(rare.sum(), 1e-6)),
        "pmi least": float(np.sort(gain)[: max(1, len(gain) // 5)].mean()),
        "question given passage": float(given.mean()),
        "least token given passage": float(np.sort(given)[: max(1, len(given) // 5)].mean()),
    }


def features(
    row: Row, rarity: Rarity, pieces: Callable[[str], int], model: Surprisal | None, times: dict[str, list[float]]
) -> dict[str, float]:
    """Features of a question: those of retrieval over all passages; of the others, the best of the first passages."""
    hits = row["hits"]
    cosines = np.sort([hit["cosine"] for hit in hits])[::-1]
    keywords = np.sort([hit["keyword"] for hit in hits])[::-1]
    result = {
        "platform": row["support"],
        "cosine": float(cosines[0]),
        "cosine margin": float(cosines[0] - cosines[1:5].mean()) if len(hits) > 1 else 0.0,
        "cosine z": float((cosines[0] - cosines.mean()) / (cosines.std() + 1e-6)),
        "keyword": float(keywords[0]),
        "keyword margin": float(keywords[0] - keywords[1:5].mean()) if len(hits) > 1 else 0.0,
        "fused": float(hits[0]["fused"]),
    }
    first = sorted(hits, key=lambda hit: -hit["cosine"])[:PASSAGES] + list(hits[:PASSAGES])
    first = list({hit["content"]: hit for hit in first}.values())
    started = time.process_time()
    lexical = [overlap(row["question"], f"{hit['title']}\n{hit['content']}", rarity, pieces) for hit in first]
    best = max(lexical, key=lambda one: one["coverage"])
    result |= best
    times.setdefault("overlap", []).append(time.process_time() - started)
    if model is not None:
        started = time.process_time()
        ids, alone, parts = model.of(row["question"], None)
        spans = [np.flatnonzero(parts == i) for i in np.unique(parts)]
        texts = [model.text([ids[j] for j in span]) for span in spans]
        result["unknown surprisal"] = -unknown_surprisal(texts, [float(-alone[span].sum()) for span in spans], rarity)
        times.setdefault("surprisal", []).append(time.process_time() - started)
        started = time.process_time()
        each = [gains(ids, parts, alone, model.of(row["question"], source_text(hit))[1]) for hit in first[:PASSAGES]]
        result |= {name: max(one[name] for one in each) for name in each[0]}
        times.setdefault("pmi", []).append(time.process_time() - started)
    return result


def read(
    part: str, titled: bool, language: str, model: Surprisal | None, times: dict[str, list[float]]
) -> list[Scored]:
    """A part's questions with their features. With the model, a sample of each kind."""
    every = orjson.loads(saved(part, titled).read_bytes())
    rows = [row for row in every if row["hits"] and row["language"] == language]
    if model is not None:
        draw = random.Random(SEED)
        kinds = {
            kind: [row for row in rows if row["kind"] == kind] for kind in dict.fromkeys(row["kind"] for row in rows)
        }
        rows = [row for group in kinds.values() for row in draw.sample(group, min(PER_KIND, len(group)))]
    texts = {source.name: [item.answer for item in faq_corpus.items(source)] for source in faq_corpus.sources(part)}
    for table in table_corpus.tables(part):
        texts[table.name] = re.split(r"</?(?:tr|h2)>", table.document)
    rarity = {name: Rarity(of) for name, of in texts.items()}
    tokenizer = Tokenizer.from_file(str(embedder_at(None) / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()

    @cache
    def pieces(word: str) -> int:
        return len(tokenizer.encode(word, add_special_tokens=False).ids)

    return [
        Scored(row, features(row, rarity[row["collection"]], pieces, model, times))
        for row in track(rows, description=part)
    ]


def areas(rows: Sequence[Scored], score: Callable[[Scored], float]) -> dict[str, float]:
    """AUC of a score against each kind of unanswerable question."""
    result = {}
    for kind in NEGATIVES:
        answerable = "row" if kind == "near miss" else "answered"
        chosen = [one for one in rows if one.row["kind"] in (answerable, kind)]
        labels = np.array([one.row["kind"] == answerable for one in chosen])
        if labels.any() and not labels.all():
            result[kind] = auc(np.array([score(one) for one in chosen]), labels)
    return result


def combination(learnt: Sequence[Scored], names: Sequence[str]) -> Callable[[Scored], float]:
    """A logistic regression of features, fitted with balanced kinds."""
    kinds = Counter(one.row["kind"] for one in learnt)
    rows = np.array([[one.features[name] for name in names] for one in learnt])
    labels = np.array([float(one.row["kind"] in ANSWERABLE) for one in learnt])
    weights = fitted(rows, labels, np.array([1 / kinds[one.row["kind"]] for one in learnt]))
    return lambda one: float(scored(weights, np.array([[one.features[name] for name in names]]))[0])


def abstention_at(learnt: Sequence[Scored], rows: Sequence[Scored], score: Callable[[Scored], float]) -> str:
    """Abstention with the threshold that 5% of the answerable calibration questions are below (split conformal)."""
    own = np.sort([score(one) for one in learnt if one.row["kind"] in ANSWERABLE])
    limit = own[max(0, math.floor(0.05 * (len(own) + 1)) - 1)]
    shares = {
        kind: np.mean([score(one) < limit for one in rows if one.row["kind"] == kind])
        for kind in dict.fromkeys(one.row["kind"] for one in rows)
    }
    return ", ".join(f"{kind} {share:.2f}" for kind, share in shares.items())


RETRIEVAL = ("cosine", "cosine margin", "cosine z", "keyword", "keyword margin")
OVERLAP = ("coverage", "rarest missing", "missing number", "unknown", "missing pieces", "unknown pieces")
PMI = (
    "pmi terms",
    "pmi least term",
    "pmi mean",
    "pmi relative",
    "pmi rare",
    "pmi least",
    "question given passage",
    "least token given passage",
)


def main() -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--titled", action="store_true", help="documents with each question before its answer")
    parser.add_argument("--language", default="en")
    parser.add_argument("--model", type=Path, help="weights of the served model; default: the platform's `full`")
    parser.add_argument("--without-model", action="store_true", help="only scores that need no language model")
    arguments = parser.parse_args()
    with command((NoPackage, NoWeights, OSError), "run it again"):
        model = None if arguments.without_model else Surprisal(full_weights(CONFIG, arguments.model)[1])
        times: dict[str, list[float]] = {}
        learnt, held = (
            read(part, arguments.titled, arguments.language, model, times) for part in ("calibration", "development")
        )
    print({part: dict(Counter(one.row["kind"] for one in rows)) for part, rows in (("fit", learnt), ("test", held))})
    for name in held[0].features:
        print(f"{name}: {_line(areas(held, lambda one, name=name: one.features[name]))}")
    sets = {
        "platform": ("platform",),
        "cosine": ("cosine",),
        "overlap": OVERLAP,
        "retrieval": RETRIEVAL,
        "retrieval, overlap": (*RETRIEVAL, *OVERLAP),
    }
    if model is not None:
        sets |= {
            "pmi": PMI,
            "retrieval, pmi": (*RETRIEVAL, *PMI),
            "retrieval, surprisal": (*RETRIEVAL, "unknown surprisal"),
            "all": (*RETRIEVAL, *OVERLAP, "unknown surprisal", *PMI),
        }
    for name, names in sets.items():
        score = combination(learnt, names)
        print(f"{name}: {_line(areas(held, score))}; at 5%: {abstention_at(learnt, held, score)}")
    for name, spent in times.items():
        print(f"{name}: {1000 * float(np.median(spent)):.1f} ms of one core a question")
    return 0


def _line(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{kind} {area:.3f}" for kind, area in shares.items())


if __name__ == "__main__":
    sys.exit(main())
