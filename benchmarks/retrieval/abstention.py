"""Measure retrieval and abstention on questions that nobody tuned to: `python -m benchmarks.retrieval.abstention`.

Questions of FAQ documents and of tables (`faq_corpus`, `table_corpus`), each against the collection of one source, with the
platform's own database, indexer and hybrid pipeline in one process. The documents are the answers without their questions: people
do not use a document's words. `--titled` puts each question before its answer, as the FAQ itself does.

The result of the part `development` is `abstention`, that of `untouched` is `abstention-untouched`: for the final measurement of a
finished system only. The part `calibration`, of which the default threshold is, and `--titled` save no result.
"""

import argparse
import asyncio
import hashlib
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"  # read when haystack is imported

import numpy as np
import orjson
import psycopg
from haystack import Pipeline

from benchmarks.lib.processes import command
from benchmarks.reporting import grounding_plots
from benchmarks.reporting.results import save
from benchmarks.retrieval import faq_corpus, table_corpus
from benchmarks.retrieval.answer_grading import share
from benchmarks.retrieval.corpora import Cached, embedder_at
from benchmarks.retrieval.packages import NoPackage
from benchmarks.retrieval.search import opened
from benchmarks.retrieval.search_speed import bar, one_at_a_time
from compression.build.family import BuildError
from deployments.database import DatabaseError
from deployments.state import cache_folder
from serve.retrieval.components import provide
from serve.retrieval.embedder import Embedder
from serve.retrieval.ingest.indexer import Indexer, Splitter
from serve.retrieval.pipelines import ALLOWED
from serve.retrieval.service import BUNDLED
from serve.retrieval.store.postgres import Owner
from serve.retrieval.verify.calibration import FALSE_ABSTENTION, conformal_threshold, min_questions
from serve.retrieval.verify.scorer import DEFAULT_THRESHOLD

TENANT = "abstention"
DEPTHS = (1, 4, 20)
ANSWERABLE = ("answered", "row")
UNANSWERABLE = ("other source", "near miss")  # without those whose answer is left out: another answer may contain it
POINTS = 200  # of a ROC curve, at most
RESULTS = {"development": "abstention", "untouched": "abstention-untouched"}  # by part


@dataclass(slots=True, frozen=True)
class Hit:
    """A retrieved passage before the abstention decision. `support` is the score that the decision compares."""

    content: str
    title: str
    right: bool
    cosine: float
    keyword: float  # PostgreSQL's rank; 0: not found by keywords
    fused: float  # reciprocal rank fusion
    support: float


@dataclass(slots=True, frozen=True)
class Asked:
    """A question, what was retrieved for it in the order of the fused rankings, and whether the platform would answer."""

    question: str
    collection: str
    language: str
    kind: str
    hits: Sequence[Hit]
    support: float
    supported: bool

    @property
    def rank(self) -> int:
        """Rank of the first right passage, from 1; 0: not retrieved."""
        return next((rank for rank, hit in enumerate(self.hits, 1) if hit.right), 0)


async def index(indexer: Indexer, part: str, titled: bool) -> None:
    """Index the part's FAQs, a document for each answer, and its tables."""
    documents = []
    for source in faq_corpus.sources(part):
        for i, item in enumerate(faq_corpus.items(source)):
            text = f"{item.question}\n\n{item.answer}" if titled else item.answer
            documents.append((source.name, f"{i}.txt", text, source.title, {"n": i}))
    for table in table_corpus.tables(part):
        documents.append((table.name, "table.html", table.document, None, {}))
    with bar() as progress:
        task = progress.add_task("documents", total=len(documents))
        for collection, name, text, title, meta in documents:
            await indexer.index(Owner(TENANT, collection), name, text.encode(), title=title, meta=meta)
            progress.advance(task)


async def ask(part: str) -> list[Asked]:
    """Ask the part's questions."""
    pipeline = Pipeline.loads((BUNDLED / "hybrid.yaml").read_text(), allowed_modules=list(ALLOWED))
    faqs = faq_corpus.questions(part)
    rows = [question for table in table_corpus.tables(part) for question in table_corpus.row_questions(table)]
    asked = []
    with bar() as progress:
        task = progress.add_task("questions", total=len(faqs) + len(rows))
        for one in faqs:
            filters = None
            if one.left_out is not None:
                filters = {"field": "meta.n", "operator": "!=", "value": one.left_out}
            outputs = await _run(pipeline, one.text, one.collection, filters)
            right = {document.id for document in outputs["joiner"] if document.meta["meta"]["n"] == one.gold}
            asked.append(_asked(one.text, one.collection, one.language, one.kind, outputs, right))
            progress.advance(task)
        for row in rows:
            outputs = await _run(pipeline, row.text, row.collection, None)
            texts = {document.id: f"{document.meta['heading']}\n{document.content}" for document in outputs["joiner"]}
            right = {key for key, text in texts.items() if row.answerable and row.entity in text and row.value in text}
            kind = "row" if row.answerable else "near miss"
            asked.append(_asked(row.text, row.collection, row.language, kind, outputs, right))
            progress.advance(task)
    return asked


async def _run(pipeline: Pipeline, question: str, collection: str, filters: dict[str, Any] | None) -> dict[str, Any]:
    inputs = {
        "question": question, "tenant": TENANT, "collection": collection, "filters": filters, "top_k": 20, "min_score": 0.0,
    }  # fmt: skip
    data = {name: {key: inputs[key] for key in names if key in inputs} for name, names in pipeline.inputs().items()}
    outputs = await pipeline.run_async(data, include_outputs_from={"embedder", "keyword", "joiner", "guard"})
    found = {name: outputs[name]["documents"] for name in ("keyword", "joiner")}
    return {**found, "embedding": outputs["embedder"]["embedding"], "guard": outputs["guard"]}


def _asked(question: str, collection: str, language: str, kind: str, outputs: dict[str, Any], right: set[str]) -> Asked:
    keyword = {document.id: document.score for document in outputs["keyword"]}
    support = {document.id: document.score for document in outputs["guard"]["documents"]}
    hits = [
        Hit(
            document.content,
            "\n".join(filter(None, dict.fromkeys((document.meta["title"], document.meta["heading"])))),
            document.id in right,
            float(np.dot(document.embedding, outputs["embedding"])),
            keyword.get(document.id, 0.0),
            document.score,
            support[document.id],
        )
        for document in outputs["joiner"]
    ]
    guard = outputs["guard"]
    return Asked(question, collection, language, kind, hits, guard["support"], guard["supported"])


def summary(asked: Sequence[Asked]) -> dict[str, Any]:
    """Shares of abstention with 95% intervals, recall at each depth, and ROC curves, by language and kind of question.

    `answerable` is `answered` and `row` together; a language with only one of these has no other row for it.
    """
    languages = {}
    for language in sorted({one.language for one in asked}):
        rows = [one for one in asked if one.language == language]
        kinds = {kind: [one for one in rows if one.kind == kind] for kind in dict.fromkeys(one.kind for one in rows)}
        answerable = [one for one in rows if one.kind in ANSWERABLE]
        languages[language] = {
            "kinds": {
                "answerable": _shares(answerable),
                **{kind: _shares(group) for kind, group in kinds.items() if group != answerable},
            },
            "roc": {
                kind: roc([one.support for one in answerable], [one.support for one in kinds[kind]])
                for kind in UNANSWERABLE
                if kind in kinds
            },
        }
    return {"threshold": DEFAULT_THRESHOLD, "rate": FALSE_ABSTENTION, "languages": languages}


def _shares(asked: Sequence[Asked]) -> dict[str, Any]:
    shares: dict[str, Any] = {"abstained": share(not one.supported for one in asked)}
    if all(one.kind in ANSWERABLE for one in asked):
        shares["abstained_found"] = share(not one.supported for one in asked if one.rank)
        shares["recall"] = {str(depth): share(0 < one.rank <= depth for one in asked) for depth in DEPTHS}
    return shares


def roc(answerable: Sequence[float], unanswerable: Sequence[float]) -> list[tuple[float, float]]:
    """Points of the ROC curve, at most `POINTS`: false abstention and abstention below each threshold, from (0, 0) to (1, 1).

    Args:
        answerable: supports of questions that have an answer.
        unanswerable: supports of questions that have none.
    """
    right, wrong = np.sort(unanswerable), np.sort(answerable)
    every = np.unique(np.concatenate([right, wrong]))
    limits = np.append(every[:: -(-len(every) // (POINTS - 1))], np.inf)
    below = (np.searchsorted(scores, limits) / len(scores) for scores in (wrong, right))
    return [(round(float(x), 4), round(float(y), 4)) for x, y in zip(*below, strict=True)]


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """The shares of a summary, a line for each language and kind of question."""
    for language, row in result["languages"].items():
        for kind, shares in row["kinds"].items():
            line = f"{language}, {kind}: abstains {_text(shares['abstained'])}"
            if "recall" in shares:
                depths = (f"@{depth} {_text(one)}" for depth, one in shares["recall"].items())
                line += f"; where the passage is found {_text(shares['abstained_found'])}; recall {', '.join(depths)}"
            yield line


def _text(rate: Mapping[str, Any]) -> str:
    if rate["share"] is None:
        return "0/0"
    low, high = rate["ci95"]
    return f"{rate['hits']}/{rate['items']} = {rate['share']:.3f} [{low:.3f}, {high:.3f}]"


def thresholds(asked: Sequence[Asked]) -> Iterator[str]:
    """The threshold that a part's own answerable questions give, by language; the default is that of the part `calibration`."""
    for language in sorted({one.language for one in asked}):
        scores = [one.support for one in asked if one.language == language and one.kind in ANSWERABLE]
        if len(scores) >= min_questions(FALSE_ABSTENTION):
            threshold = conformal_threshold(scores)
            yield f"{language}: threshold of these {len(scores)} for a false-abstention rate of {FALSE_ABSTENTION}: {threshold:.3f}"


def saved(part: str, titled: bool) -> Path:
    """The file with everything that was retrieved."""
    return cache_folder() / "abstention" / f"{part}{'-titled' if titled else ''}.json"


async def measure(part: str, titled: bool, folder: Path) -> list[Asked]:
    """Index and ask, in a temporary database."""
    embedder = Embedder(folder)
    model = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
    cached = Cached(embedder, model, cache_folder() / "corpora" / "vectors.sqlite")
    embed = one_at_a_time(cached.embed)
    with tempfile.TemporaryDirectory(prefix="gb-abstention-") as place:
        async with opened(Path(place), embedder) as (database, store):
            indexer = Indexer(store, embed, Splitter(folder / "tokenizer.json"), model)
            await index(indexer, part, titled)
            await indexer.close()
            with psycopg.connect(database.conninfo, autocommit=True) as connection:
                connection.execute("VACUUM ANALYZE")
            provide(store, embed)
            return await ask(part)


def main() -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=faq_corpus.PARTS, default="development")
    parser.add_argument("--titled", action="store_true", help="documents with each question before its answer")
    parser.add_argument("--embedder", type=Path, help="the folder of an exported model; default: the platform's own")
    arguments = parser.parse_args()
    with command((NoPackage, BuildError, DatabaseError, OSError), "vectors are cached; run it again, it is quicker"):
        asked = asyncio.run(measure(arguments.part, arguments.titled, embedder_at(arguments.embedder)))
    file = saved(arguments.part, arguments.titled)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(orjson.dumps([asdict(one) for one in asked]))
    result = summary(asked)
    print("\n".join([*lines(result), *thresholds(asked)]))
    if arguments.part in RESULTS and not arguments.titled:
        save(RESULTS[arguments.part], {"part": arguments.part, **result})
        grounding_plots.abstention(result, RESULTS[arguments.part])
    return 0


if __name__ == "__main__":
    sys.exit(main())
