"""Measure retrieval and abstention on questions that nobody tuned to: `python -m benchmarks.retrieval.abstention`.

Questions of FAQ documents and of tables (`faq_corpus`, `table_corpus`), each against the collection of one source, with the
platform's own database, indexer and hybrid pipeline in one process. The documents are the answers without their questions: people
do not use a document's words. `--titled` puts each question before its answer, as the FAQ itself does.

The part `untouched` is for the final measurement of a finished system only.
"""

import argparse
import asyncio
import hashlib
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"  # read when haystack is imported

import numpy as np
import orjson
import psycopg
from haystack import Pipeline

from benchmarks.lib.processes import command
from benchmarks.retrieval import faq_corpus, table_corpus
from benchmarks.retrieval.corpora import Cached, embedder_at
from benchmarks.retrieval.packages import NoPackage
from benchmarks.retrieval.search import opened
from benchmarks.retrieval.search_speed import bar, one_at_a_time
from compression.build.family import BuildError
from compression.measure.intervals import wilson_ci95
from deployments.database import DatabaseError
from deployments.state import cache_folder
from serve.retrieval.components import provide
from serve.retrieval.embedder import Embedder
from serve.retrieval.ingest.indexer import Indexer, Splitter
from serve.retrieval.pipelines import ALLOWED
from serve.retrieval.service import BUNDLED
from serve.retrieval.store.postgres import Owner
from serve.retrieval.verify.calibration import FALSE_ABSTENTION, conformal_threshold, min_questions

TENANT = "abstention"
DEPTHS = (1, 4, 20)
ANSWERABLE = ("answered", "row")


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


def summary(asked: Sequence[Asked]) -> Iterator[str]:
    """Lines of results, with 95% intervals, by language and kind of question."""
    for language in sorted({one.language for one in asked}):
        for kind in dict.fromkeys(one.kind for one in asked):
            rows = [one for one in asked if (one.language, one.kind) == (language, kind)]
            if not rows:
                continue
            abstained = sum(not one.supported for one in rows)
            line = f"{language}, {kind}: abstains {share(abstained, len(rows))}"
            if kind in ANSWERABLE:
                depths = (
                    f"@{depth} {share(sum(0 < one.rank <= depth for one in rows), len(rows))}" for depth in DEPTHS
                )
                found = [one for one in rows if one.rank]
                lost = sum(not one.supported for one in found)
                line += f"; where the passage is found {share(lost, len(found))}; recall {', '.join(depths)}"
            yield line
        scores = [one.support for one in asked if one.language == language and one.kind in ANSWERABLE]
        if len(scores) >= min_questions(FALSE_ABSTENTION):
            threshold = conformal_threshold(scores)
            yield f"{language}: threshold of these {len(scores)} for a false-abstention rate of {FALSE_ABSTENTION}: {threshold:.3f}"


def share(hits: int, items: int) -> str:
    """A share with its 95% interval."""
    low, high = wilson_ci95(hits, items)
    return f"{hits}/{items} = {hits / items:.3f} [{low:.3f}, {high:.3f}]"


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
    print("\n".join(summary(asked)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
