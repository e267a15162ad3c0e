"""Measure search quality, search latency and indexing speed: `python -m benchmarks.retrieval.search`.

Uses the platform's own database, store, indexer and pipelines, in one process, in a temporary folder. The
first run embeds about 10,000 chunks and takes about twenty minutes on one core; later ones take the vectors from the cache.
"""

import argparse
import asyncio
import hashlib
import math
import os
import random
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"  # read when haystack is imported

import psycopg
import yaml
from haystack import Pipeline

from benchmarks.lib.processes import command
from benchmarks.reporting import grounding_plots
from benchmarks.reporting.results import Progress, save
from benchmarks.retrieval.corpora import Cached, Question, embedder_at, python, terms
from benchmarks.retrieval.labelled_texts import fetched
from benchmarks.retrieval.packages import NoPackage
from benchmarks.retrieval.search_speed import (
    FULL,
    MODES,
    OWNER,
    SEED,
    bar,
    fill,
    index_all,
    index_recall,
    indexing,
    interval,
    latency,
    one_at_a_time,
)
from compression.build.family import BuildError
from deployments.database import Database, DatabaseError
from deployments.state import cache_folder
from serve.retrieval.components import provide
from serve.retrieval.embedder import Embedder
from serve.retrieval.ingest.indexer import Indexer, Splitter
from serve.retrieval.pipelines import ALLOWED
from serve.retrieval.service import BUNDLED
from serve.retrieval.store.postgres import Store

DEPTHS = {"recall_at_5": 5, "recall_at_10": 10}
ASKED = 50  # questions whose latency is measured


async def rankings(mode: str, question: str) -> dict[str, list[tuple[str, str]]]:
    """(Source, passage) in the ranking of `mode`'s pipeline before its guard, and in that of the guard without a threshold."""
    file = BUNDLED / f"{mode}.yaml"
    pipeline = _loaded.setdefault(mode, Pipeline.loads(file.read_text(), allowed_modules=list(ALLOWED)))
    links = yaml.safe_load(file.read_text())["connections"]
    before = next(one["sender"].split(".")[0] for one in links if one["receiver"] == "guard.documents")
    inputs = {
        "question": question, "tenant": OWNER.tenant, "collection": OWNER.collection, "top_k": 20, "min_score": 0.0,
    }  # fmt: skip
    data = {name: {key: inputs[key] for key in names if key in inputs} for name, names in pipeline.inputs().items()}
    outputs = await pipeline.run_async(data, include_outputs_from={before, "guard"})
    return {
        order: [(one.meta["source"], one.content) for one in outputs[component]["documents"]]
        for order, component in (("as found", before), ("after the guard", "guard"))
    }


_loaded: dict[str, Pipeline] = {}


def first_right(question: Question, ranking: Sequence[tuple[str, str]]) -> int:
    """Rank of the first passage with the answer, from 1; 0 if there is none."""
    return next((at for at, one in enumerate(ranking, 1) if question.answered_by(*one)), 0)


def measures(rank: int) -> dict[str, float]:
    """Hit, reciprocal rank and discounted cumulative gain (Järvelin 2002) of one question with one right section."""
    hits = {name: float(0 < rank <= depth) for name, depth in DEPTHS.items()}
    near = 0 < rank <= 10
    return {**hits, "mrr_at_10": 1 / rank if near else 0.0, "ndcg_at_10": 1 / math.log2(1 + rank) if near else 0.0}


async def quality(questions: Sequence[Question]) -> dict[str, Any]:
    """Ranking quality of every pipeline on every set of questions, and the differences between pipelines."""
    ranks: dict[tuple[str, str], list[int]] = {}
    with bar() as progress:
        task = progress.add_task("questions", total=len(questions))
        for question in questions:
            for mode in MODES:
                for order, ranking in (await rankings(mode, question.text)).items():
                    ranks.setdefault((mode, order), []).append(first_right(question, ranking))
            progress.advance(task)

    def of(key: tuple[str, str], measure: str, subset: str | None) -> list[float]:
        pairs = zip(questions, ranks[key], strict=True)
        return [measures(rank)[measure] for one, rank in pairs if subset in (None, one.subset)]

    names = [*measures(0)]
    subsets = [None, *dict.fromkeys(one.subset for one in questions)]
    sets = {
        subset or "all": {
            mode: {
                order: {measure: interval(of((mode, order), measure, subset)) for measure in names}
                for order in ("as found", "after the guard")
            }
            for mode in MODES
        }
        for subset in subsets
    }

    def gain(one: tuple[str, str], other: tuple[str, str]) -> dict[str, Any]:
        pairs = {
            subset: zip(of(one, "ndcg_at_10", subset), of(other, "ndcg_at_10", subset), strict=True)
            for subset in subsets
        }
        return {subset or "all": interval([a - b for a, b in scores]) for subset, scores in pairs.items()}

    found = "as found"
    gains = {
        "hybrid over dense": gain(("hybrid", found), ("dense", found)),
        "hybrid over keyword": gain(("hybrid", found), ("keyword", found)),
        **{f"the guard's order, {mode}": gain((mode, "after the guard"), (mode, found)) for mode in MODES},
    }
    return {"sets": sets, "ndcg_gain": gains}


@asynccontextmanager
async def opened(folder: Path, embedder: Embedder) -> AsyncIterator[tuple[Database, Store]]:
    """Open a temporary database and its store."""
    database = Database(folder / "database")
    database.start()
    store = Store(database.conninfo, embedder.dimension)
    try:
        await store.open()
        yield database, store
    finally:
        await store.close()
        database.stop()


async def measure(folder: Path) -> dict[str, Any]:
    """Measure everything. Returns the result without the machine."""
    progress = Progress(
        [
            ("texts", 20),
            ("indexing", 120),
            ("documents", 500),
            ("quality", 150),
            ("10k", 50),
            ("fill", 200),
            ("100k", 120),
            ("index", 60),
        ]
    )
    progress.step("texts, as Debian packages")
    draw = random.Random(SEED)
    texts = fetched()
    pages, about_pages = python(texts, draw)
    entries, about_terms = terms(texts, draw)
    questions = about_pages + about_terms
    embedder = Embedder(folder)
    model = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
    cached = Cached(embedder, model, cache_folder() / "corpora" / "vectors.sqlite")
    timed_questions = [one.text for one in draw.sample(questions, ASKED)]
    with tempfile.TemporaryDirectory(prefix="gb-retrieval-") as place:
        async with opened(Path(place), embedder) as (database, store):
            progress.step("indexing, nothing in the cache")
            speeds = await indexing(database, embedder, folder, pages + entries)
            progress.step(f"{len(pages) + len(entries)} documents; vectors are taken from the cache or put there")
            indexer = Indexer(store, one_at_a_time(cached.embed), Splitter(folder / "tokenizer.json"), model)
            chunks = await index_all(indexer, OWNER, pages + entries, 2, "documents")
            with psycopg.connect(database.conninfo, autocommit=True) as connection:
                connection.execute("VACUUM ANALYZE")
            provide(store, one_at_a_time(cached.embed))
            progress.step(f"quality: {len(questions)} questions, {len(MODES)} pipelines, {chunks} chunks")
            ranking_quality = await quality(questions)
            provide(store, one_at_a_time(embedder.embed))
            progress.step(f"latency at {chunks} chunks")
            small = await latency(timed_questions)
            progress.step(f"{FULL} chunks")
            built_s = await fill(database, store)
            progress.step(f"latency at {FULL} chunks")
            large = await latency(timed_questions)
            progress.step("the index of embeddings against exact search")
            exact = await index_recall(database, cached.embed(timed_questions))
    return {
        "seed": SEED, "documents": {"python": len(pages), "foldoc": len(entries)}, "chunks": chunks,
        "indexing": speeds, "quality": ranking_quality, "latency": {str(chunks): small, str(FULL): large},
        "index": exact, "index_built_s": round(built_s, 1),
    }  # fmt: skip


def main() -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--embedder", type=Path, help="the folder of an exported model; default: the platform's own")
    folder = parser.parse_args().embedder
    with command((NoPackage, BuildError, DatabaseError, OSError), "vectors are cached; run it again, it is quicker"):
        result = asyncio.run(measure(embedder_at(folder)))
    save("retrieval", result)
    grounding_plots.retrieval(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
