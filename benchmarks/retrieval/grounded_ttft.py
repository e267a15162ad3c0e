"""Measure the time to first token that grounding adds: `python -m benchmarks.retrieval.grounded_ttft`.

Each question is sent bare and grounded in turn, streamed, one at a time, to the running platform (started if there is none) with
10,000 chunks in the collection. The chunks are written directly into its database: their vectors are in the cache of
`benchmarks.retrieval.search`, which has to have run before. Takes three minutes.
"""

import argparse
import asyncio
import hashlib
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.lib.platform_session import NoPlatform, cards, headers, platform
from benchmarks.lib.processes import NotStarted, command
from benchmarks.reporting.results import Progress, save, spread
from benchmarks.retrieval.corpora import Cached, python, terms
from benchmarks.retrieval.labelled_texts import fetched
from benchmarks.retrieval.packages import NoPackage
from benchmarks.retrieval.search_speed import index_all, one_at_a_time
from deployments.state import cache_folder, load_state, state_folder
from serve.retrieval.embedder import Embedder
from serve.retrieval.ingest.indexer import Indexer, Splitter
from serve.retrieval.store.postgres import Owner, Store

SEED = 0
OWNER = Owner("anonymous", "benchmark-ttft")
QUESTIONS = 40


async def fill(place: Path) -> tuple[int, list[str]]:
    """Index the corpora into the platform's database; returns the number of chunks, and questions that they answer."""
    state = load_state(state_folder())
    if state is None or state.database is None or state.embedder is None:
        raise NoPlatform("a platform with a database of its own is needed, started on this machine")
    folder = Path(state.embedder)
    draw = random.Random(SEED)
    pages, about_pages = python(place, draw)
    entries, about_terms = terms(place, draw)
    model = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
    embedder = Embedder(folder)
    cached = Cached(embedder, model, cache_folder() / "corpora" / "vectors.sqlite")
    store = Store(state.database, embedder.dimension)
    await store.open()
    try:
        indexer = Indexer(store, one_at_a_time(cached.embed), Splitter(folder / "tokenizer.json"), model)
        await index_all(indexer, OWNER, pages + entries, 2, "documents")
        chunks = (await store.collections(OWNER.tenant))[OWNER.collection]["chunks"]
    finally:
        await store.close()
    return chunks, [one.text for one in draw.sample(about_pages + about_terms, QUESTIONS)]


def first_token_ms(client: httpx.Client, body: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    """TTFT as the client sees it in ms, and the answer's `gearbox` object."""
    started, first, facts = time.perf_counter(), 0.0, {}
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[6:])
            facts = event.get("gearbox", facts)
            has_text = any(choice["delta"].get("content") for choice in event["choices"])
            if has_text and not first:
                first = (time.perf_counter() - started) * 1000
    return first, facts


def ask(url: str, model: str, variant: str, questions: list[str]) -> dict[str, Any]:
    """Ask every question bare and grounded, in turn."""
    rows = []
    with httpx.Client(base_url=url, headers=headers(), timeout=120) as client:
        for i, question in enumerate(questions):
            body = {
                "model": f"{model}:{variant}", "messages": [{"role": "user", "content": question}], "stream": True,
                "max_tokens": 8, "temperature": 0,
            }  # fmt: skip
            retrieval = {
                "collection": OWNER.collection,
                "on_unsupported": "answer",
                "unverified": "mark",
                "min_score": 0.0,
            }
            arms = [("bare", body), ("grounded", {**body, "retrieval": retrieval})]
            took = {}
            for name, request in arms if i % 2 else reversed(arms):
                took[name], facts = first_token_ms(client, request)
                if name == "grounded":
                    took["search"] = facts["retrieval"]["ms"]
                    took["check"] = facts["retrieval"]["check_ms"] or 0.0
            rows.append(took)
    added = [row["grounded"] - row["bare"] for row in rows]
    searched = [row["search"] for row in rows]
    return {
        "bare_ms": spread([row["bare"] for row in rows], 1), "grounded_ms": spread([row["grounded"] for row in rows], 1),
        "added_ms": {**spread(added, 1), "p95": round(float(np.percentile(added, 95)), 1)},
        "search_ms": {**spread(searched, 1), "p95": round(float(np.percentile(searched, 95)), 1)},
        "check_ms": spread([row["check"] for row in rows], 1),
    }  # fmt: skip


def main() -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path)
    options = parser.parse_args()
    with command((NoPackage, NoPlatform, NotStarted, OSError, httpx.HTTPError), "run it again"):
        texts = fetched()
        with platform(None, options.config) as url:
            model, by_name, _ = cards(url)
            progress = Progress([("fill", 60), *((name, 30.0) for name in by_name)])
            progress.step("documents into the platform's database")
            chunks, questions = asyncio.run(fill(texts))
            result: dict[str, Any] = {"seed": SEED, "chunks": chunks, "questions": len(questions), "variants": {}}
            for name in by_name:
                progress.step(f"{name}: {len(questions)} questions, bare and grounded")
                ask(url, model, name, questions[:2])  # warm-up
                result["variants"][name] = ask(url, model, name, questions)
    save("grounded-ttft", result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
