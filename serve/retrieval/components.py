"""Haystack components: question embedder, vector and keyword retrievers, support filter.

They use the store and embedder set with `provide`, so a pipeline's YAML names neither addresses nor passwords. All run asynchronously:
use `Pipeline.run_async`.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from haystack import Document, component

from serve.retrieval.embedder import Embedder, Vectors
from serve.retrieval.store.calibrations import Calibration
from serve.retrieval.store.postgres import Hit, Owner, Store
from serve.retrieval.verify.scorer import DEFAULT_THRESHOLD, SCORER, support_scores

Embed = Callable[[Sequence[str]], Awaitable[Vectors]]
CANDIDATES = 20  # chunks that each retriever returns


@dataclass(slots=True, frozen=True)
class Resources:
    """The store and the embedder that components use."""

    store: Store
    embed: Embed
    scorer: str  # identity of support scores


_provided: ContextVar[Resources] = ContextVar("resources of retrieval components")


def provide(store: Store, embed: Embed, model: str = "") -> None:
    """Set what components use that run in this task and in tasks that it starts.

    Args:
        embed: texts to unit vectors.
        model: identity of the embedder: calibrations for another one are ignored.
    """
    _provided.set(Resources(store, embed, scorer_of(model)))


def scorer_of(model: str) -> str:
    """Identity of the support scores that come from this embedder."""
    return f"{SCORER}; {model}"


async def connect(conninfo: str, embedder: Path) -> Store:
    """`provide` the database at `conninfo` and the model in the folder `embedder`.

    For pipelines outside the platform, which have the default threshold of support. Raises `StoreUnavailable`.
    """
    model = Embedder(embedder)
    store = Store(conninfo, model.dimension)
    await store.open()

    async def embed(texts: Sequence[str]) -> Vectors:
        return await asyncio.to_thread(model.embed, texts)

    provide(store, embed)
    return store


async def current_calibration(store: Store, owner: Owner, scorer: str) -> Calibration | None:
    """The collection's calibration; None where it has none for this scorer."""
    calibration = await store.calibration(owner)
    return calibration if calibration and calibration.scorer == scorer else None


def _resources() -> Resources:
    try:
        return _provided.get()
    except LookupError:
        raise RuntimeError("no store and embedder here; call serve.retrieval.components.provide first") from None


def _only_async() -> NoReturn:
    raise RuntimeError("this component is asynchronous; use Pipeline.run_async")


@component
class QuestionEmbedder:
    """Embed the question."""

    @component.output_types(embedding=list[float])
    def run(self, question: str) -> dict[str, Any]:
        """Only `run_async` works."""
        _only_async()

    @component.output_types(embedding=list[float])
    async def run_async(self, question: str) -> dict[str, Any]:
        """`embedding`: the question's unit vector."""
        return {"embedding": (await _resources().embed([question]))[0].tolist()}


@component
class DenseRetriever:
    """Vector search: chunks whose embeddings are nearest to the question's."""

    def __init__(self, candidates: int = CANDIDATES) -> None:
        self.candidates = candidates

    @component.output_types(documents=list[Document])
    def run(
        self, embedding: list[float], tenant: str, collection: str, filters: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Only `run_async` works."""
        _only_async()

    @component.output_types(documents=list[Document])
    async def run_async(
        self, embedding: list[float], tenant: str, collection: str, filters: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """`documents`: the nearest chunks, with their cosine similarity as score."""
        hits = await _resources().store.vector_search(Owner(tenant, collection), embedding, self.candidates, filters)
        return {"documents": [_document(hit) for hit in hits]}


@component
class KeywordRetriever:
    """Keyword search: chunks that contain the question's words."""

    def __init__(self, candidates: int = CANDIDATES) -> None:
        self.candidates = candidates

    @component.output_types(documents=list[Document])
    def run(self, question: str, tenant: str, collection: str, filters: dict[str, Any] | None = None) -> dict[str, Any]:
        """Only `run_async` works."""
        _only_async()

    @component.output_types(documents=list[Document])
    async def run_async(
        self, question: str, tenant: str, collection: str, filters: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """`documents`: the best matches, with PostgreSQL's rank as score."""
        hits = await _resources().store.keyword_search(Owner(tenant, collection), question, self.candidates, filters)
        return {"documents": [_document(hit) for hit in hits]}


@component
class SupportFilter:
    """Keep the passages that support an answer to the question; passages of similar support are ordered newest first.

    Args:
        min_support: support below which a passage does not count; default: the collection's calibrated threshold.
        margin: passages this close to the best are ordered by their document's `date`, an ISO date in its metadata.
    """

    def __init__(self, min_support: float | None = None, margin: float = 0.15) -> None:
        self.min_support = min_support
        self.margin = margin

    @component.output_types(documents=list[Document], support=float, supported=bool)
    def run(
        self,
        question: str,
        embedding: list[float],
        documents: list[Document],
        tenant: str,
        collection: str,
        top_k: int = 4,
        min_score: float | None = None,
    ) -> dict[str, Any]:
        """Only `run_async` works."""
        _only_async()

    @component.output_types(documents=list[Document], support=float, supported=bool)
    async def run_async(
        self,
        question: str,
        embedding: list[float],
        documents: list[Document],
        tenant: str,
        collection: str,
        top_k: int = 4,
        min_score: float | None = None,
    ) -> dict[str, Any]:
        """`documents`: at most `top_k`, with their support as score; `support`: of the best, 0 to 1; `supported`: whether one
        of `documents` supports an answer, which a `min_score` below the threshold does not change."""
        resources = _resources()
        threshold = await self._threshold(resources, Owner(tenant, collection))
        limit = threshold if min_score is None else min_score
        contents = [_with_heading(document) for document in documents]
        vectors = np.asarray([document.embedding for document in documents], np.float32)
        scores = await support_scores(question, np.asarray(embedding, np.float32), contents, vectors, resources.embed)
        best = max(scores, default=0.0)
        ranked = sorted(zip(scores, documents, strict=True), key=lambda pair: -pair[0])
        near = [pair for pair in ranked if pair[0] >= best - self.margin]
        near.sort(key=lambda pair: str(pair[1].meta["meta"].get("date", "")), reverse=True)
        selected = [(score, document) for score, document in near + ranked[len(near) :] if score >= limit][:top_k]
        filtered = [Document(id=d.id, content=d.content, meta=d.meta, score=score) for score, d in selected]
        return {"documents": filtered, "support": best, "supported": bool(filtered) and best >= threshold}

    async def _threshold(self, resources: Resources, owner: Owner) -> float:
        if self.min_support is not None:
            return self.min_support
        calibration = await current_calibration(resources.store, owner, resources.scorer)
        return calibration.threshold if calibration else DEFAULT_THRESHOLD


def _with_heading(document: Document) -> str:
    heads = dict.fromkeys(text for text in (document.meta["title"], document.meta["heading"]) if text)
    return "\n".join([*heads, document.content or ""])


def _document(hit: Hit) -> Document:
    """A chunk as a Haystack document. `meta["meta"]` is the metadata that its document was indexed with."""
    meta = {
        "source": hit.source, "title": hit.title, "heading": hit.heading, "page": hit.page, "position": hit.position,
        "meta": hit.meta,
    }  # fmt: skip
    return Document(
        id=f"{hit.position}@{hit.source}",
        content=hit.content,
        meta=meta,
        embedding=hit.embedding.tolist(),
        score=hit.score,
    )
