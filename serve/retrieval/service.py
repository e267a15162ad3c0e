"""Retrieval service: index documents, search passages, build the grounded prompt, check answers, run the agent."""

import asyncio
import logging
import os
import traceback
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from time import perf_counter
from typing import Any
from zoneinfo import ZoneInfo

import httpx
from haystack import Document

from serve.config.retrieval import RetrievalConfig
from serve.errors import RequestError, retrieval_misconfigured
from serve.retrieval.components import Embed, current_calibration, provide, scorer_of
from serve.retrieval.ingest.indexer import Indexer, Limits, Splitter
from serve.retrieval.pipelines import RetrievalResult, load_pipelines
from serve.retrieval.store.calibrations import Calibration
from serve.retrieval.store.postgres import Owner, Store, parse_filters
from serve.retrieval.verify import faithfulness as scoring
from serve.retrieval.verify.calibration import FALSE_ABSTENTION, TooFewQuestions, conformal_threshold
from serve.retrieval.verify.scorer import DEFAULT_THRESHOLD
from serve.tools.agent import AgentError, run_agent
from serve.tools.haystack_tools import calculator, clock, search_documents
from serve.tools.http_tools import http_tools

_LOG = logging.getLogger("gearbox.retrieval")
BUNDLED = Path(__file__).resolve().parents[2] / "deployments" / "pipelines"
_MAX_QUOTE_CHARS = 300  # quote length of a source without selected sentences
_METHODS = {
    "ground",
    "search",
    "index",
    "documents",
    "collections",
    "delete",
    "check",
    "agent",
    "exists",
    "calibration",
    "calibrate",
    "delete_calibration",
}


class Service:
    """Retrieval of one deployment. Every call is scoped to one tenant and never reads another tenant's documents.

    Args:
        embed: texts to unit vectors, (texts, dimension) in float32.
        dimension: of those vectors.
        tokenizer: file of the embedder's tokenizer, which chunks are measured with.
        model: identity of the embedder: documents embedded by another model are indexed again.

    Raises:
        PipelineError: a pipeline that can't be used.
    """

    def __init__(
        self, config: RetrievalConfig, conninfo: str, embed: Embed, dimension: int, tokenizer: Path, model: str
    ) -> None:
        folders = [BUNDLED, *([config.pipelines] if config.pipelines else [])]
        self._config = config
        self._pipelines = load_pipelines(folders, config.allowed_modules)
        self._store = Store(conninfo, dimension, config.language)
        self._embed = embed
        self._model = model
        splitter = Splitter(tokenizer)
        self._indexer = Indexer(self._store, embed, splitter, model, Limits(document_bytes=config.max_document_bytes))
        self._http_tools = [tool for one in config.http_tools for tool in http_tools(one, os.environ)]
        self._opened = False
        self._opening = asyncio.Lock()

    async def call(self, method: str, arguments: Mapping[str, Any]) -> Any:
        """Dispatch to one of the methods below. Raises `RequestError`."""
        if method not in _METHODS:
            raise RequestError(404, f"there is no '{method}' here", code="not_found")
        if method not in ("check", "agent"):
            await self.open()
        return await getattr(self, method)(**arguments)

    async def open(self) -> None:
        """Connect, at first or when the database was not there before. Raises what `Store.open` does."""
        if not self._opened:
            async with self._opening:
                if not self._opened:
                    await self._store.open()
                    self._opened = True

    async def close(self) -> None:
        """Close the conversion workers and the database connections."""
        await self._indexer.close()
        await self._store.close()

    async def search(
        self, tenant: str, collection: str, question: str, top_k: int, mode: str,
        filters: Mapping[str, Any] | None = None, min_score: float | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Search passages; returns those that passed the guard, in its order."""
        started = perf_counter()
        found, described = await self._find(tenant, collection, question, top_k, mode, filters, min_score)
        passages = _passages(found.passages)
        return {**described, "passages": passages, "supported": found.supported, "ms": _since(started)}

    async def ground(
        self, tenant: str, collection: str, question: str, top_k: int, mode: str,
        filters: Mapping[str, Any] | None = None, min_score: float | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Search passages and build the prompt: the messages with the question and its sources."""
        started = perf_counter()
        found, described = await self._find(tenant, collection, question, top_k, mode, filters, min_score)
        prompt = [{"role": message.role.value, "content": message.text or ""} for message in found.prompt]
        return {**described, "prompt": prompt, "ms": _since(started)}

    async def _find(
        self, tenant: str, collection: str, question: str, top_k: int, mode: str,
        filters: Mapping[str, Any] | None, min_score: float | None,
    ) -> tuple[RetrievalResult, dict[str, Any]]:  # fmt: skip
        if mode not in self._pipelines:
            known = ", ".join(self._pipelines)
            raise RequestError(
                400, f"no retrieval mode '{mode}'; there are: {known}", param="retrieval.mode", code="invalid_mode"
            )
        provide(self._store, self._embed, self._model)
        if filters:
            parse_filters(filters)  # validate before Haystack makes deep copies
        try:
            found = await self._pipelines[mode].run(
                question=unicodedata.normalize("NFC", question),  # as the documents' text
                tenant=tenant,
                collection=collection,
                filters=filters,
                top_k=top_k,
                min_score=min_score,
            )
            described = _to_response(found)
        except Exception as error:  # a component may raise anything, and Haystack wraps it
            raise _failure(mode, error) from error
        if not found.documents and not await self.exists(tenant, collection):
            raise _no_collection(collection)
        return found, described

    async def exists(self, tenant: str, collection: str) -> bool:
        """Whether the tenant has a collection of this name with at least one document."""
        return await self._store.exists(Owner(tenant, collection))

    async def check(
        self, answer: str, passages: Sequence[str], question: str = "", heads: Sequence[str] = ()
    ) -> list[dict[str, Any]]:
        """Sentences of `answer` with whether the passages support them; positions are in characters.

        `heads`: the passages' titles and headings.
        """
        sources = [scoring.Passage(head, text) for head, text in zip_longest(heads, passages, fillvalue="")]
        return [
            {
                "start": one.start, "end": one.end, "supported": one.supported, "score": None if one.score is None else round(one.score, 4),
                "source": None if one.passage is None else one.passage + 1,
            }
            for one in await scoring.check_answer(answer, sources, self._embed, question=question)
        ]  # fmt: skip

    async def agent(
        self, tenant: str, collection: str | None, messages: Sequence[Mapping[str, Any]], tools: Sequence[str],
        top_k: int, mode: str, url: str, key: str, model: str, more: Mapping[str, Any], timeout_s: float,
    ) -> dict[str, Any]:  # fmt: skip
        """Let `model` at the gateway `url` call the platform's tools, as the client with `key`, until it answers."""
        known = {"calculator": calculator(), "clock": clock(ZoneInfo(self._config.timezone))}
        offered = [*(known[name] for name in tools), *self._http_tools]
        if collection is not None:

            async def search(query: str, most: int, collection: str = collection) -> list[dict[str, Any]]:
                await self.open()
                try:
                    _, described = await self._find(tenant, collection, query, most, mode, None, None)
                except RequestError as error:
                    if (
                        error.code == "collection_not_found"
                    ):  # the gateway has already checked a collection that the request names
                        return []
                    raise
                return list(described["passages"])

            offered.append(search_documents(search, top_k))
        try:
            answer = await run_agent(
                messages,
                offered,
                url,
                key,
                model,
                self._config.max_agent_steps,
                {**more, "retrieval": False},
                timeout_s,
            )
        except AgentError as fault:
            later = {"retry-after": "2"} if fault.status in (429, 503, 504) else {}
            raise RequestError(fault.status, str(fault), code="agent_failed", headers=later) from fault
        used = [
            {"name": tool_use.name, "input": dict(tool_use.input), "output": tool_use.output}
            for tool_use in answer.used
        ]
        return {
            "text": answer.text, "tools": used, "usage": dict(answer.usage), "finish_reason": answer.finish_reason,
            "cost_usd": answer.cost_usd, "attempts": answer.attempts,
        }  # fmt: skip

    async def index(
        self, tenant: str, collection: str, source: str, data: bytes, kind: str | None = None,
        title: str | None = None, meta: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Index a document; it replaces the document of the same `source`."""
        result = await self._indexer.index(Owner(tenant, collection), source, data, kind, title, meta or {})
        return {
            "status": result.status, "chunks": result.chunks, "sha256": result.sha256, "ms": round(result.ms, 2),
            "left_out": result.left_out,
        }  # fmt: skip

    async def documents(self, tenant: str, collection: str, after: str, limit: int) -> list[dict[str, Any]]:
        """List one page of the indexed documents, by name. Raises `RequestError` 404 for a missing collection."""
        documents = await self._store.list_documents(Owner(tenant, collection), after, limit)
        if not documents and not await self.exists(tenant, collection):
            raise _no_collection(collection)
        return [
            {
                "source": document.name, "title": document.title, "size": document.size, "chunks": document.chunks, "sha256": document.sha256.hex(),
                "current": self._indexer.is_current(document), "meta": document.meta, "indexed_at": document.indexed_at,
            }
            for document in documents
        ]  # fmt: skip

    async def collections(self, tenant: str, after: str, limit: int) -> list[dict[str, Any]]:
        """List one page of the tenant's collections by name, with their numbers of documents and chunks."""
        counts_by_name = await self._store.collections(tenant, after, limit)
        return [{"collection": name, **counts} for name, counts in counts_by_name.items()]

    async def delete(self, tenant: str, collection: str, source: str | None) -> int:
        """Delete a document or, without `source`, the collection; returns the number of deleted documents.

        Raises:
            RequestError: 404 for a missing collection, or a missing document.
        """
        deleted = await self._store.delete(Owner(tenant, collection), source)
        if not deleted:
            if source is None or not await self.exists(tenant, collection):
                raise _no_collection(collection)
            message = f"collection '{collection}' has no document '{source[:200]}'"
            raise RequestError(404, message, param="source", code="document_not_found")
        return deleted

    async def calibration(self, tenant: str, collection: str) -> dict[str, Any]:
        """The threshold of a collection. Raises `RequestError` 404 for a missing collection."""
        if not await self.exists(tenant, collection):
            raise _no_collection(collection)
        found = await current_calibration(self._store, Owner(tenant, collection), scorer_of(self._model))
        return _calibration(collection, found)

    async def calibrate(self, tenant: str, collection: str, scores: Sequence[float], rate: float) -> dict[str, Any]:
        """Set the threshold of a collection from the support of answerable questions.

        Raises:
            RequestError: 404 for a missing collection, 422 for fewer questions than the rate needs.
        """
        try:
            threshold = conformal_threshold(scores, rate)
        except TooFewQuestions as error:
            raise RequestError(422, str(error), param="scores", code="too_few_questions") from error
        owner = Owner(tenant, collection)
        stored = await self._store.set_calibration(owner, threshold, rate, len(scores), scorer_of(self._model))
        if stored is None:
            raise _no_collection(collection)
        return _calibration(collection, stored)

    async def delete_calibration(self, tenant: str, collection: str) -> dict[str, Any]:
        """Return a collection to the platform's default threshold. Raises `RequestError` 404 for a missing collection."""
        await self._store.delete_calibration(Owner(tenant, collection))
        return await self.calibration(tenant, collection)


def _calibration(collection: str, calibration: Calibration | None) -> dict[str, Any]:
    """A calibration as the API shows it; without one, the platform's default."""
    if calibration is None:
        return {
            "collection": collection, "threshold": DEFAULT_THRESHOLD, "rate": FALSE_ABSTENTION, "questions": None,
            "calibrated_at": None,
        }  # fmt: skip
    return {
        "collection": collection, "threshold": calibration.threshold, "rate": calibration.rate,
        "questions": calibration.questions, "calibrated_at": calibration.calibrated_at,
    }  # fmt: skip


def _no_collection(collection: str) -> RequestError:
    message = f"collection '{collection[:200]}' does not exist"
    return RequestError(404, message, param="collection", code="collection_not_found")


def _to_response(result: RetrievalResult) -> dict[str, Any]:
    return {
        "support": round(float(result.support), 4), "passages": _passages(result.documents),
        "timings_ms": dict(result.timings_ms), "starts_ms": dict(result.starts_ms),
    }  # fmt: skip


def _passages(documents: Sequence[Document]) -> list[dict[str, Any]]:
    return [
        {
            "n": number, **{name: document.meta[name] for name in ("source", "title", "heading", "page")},
            "score": round(float(document.score or 0.0), 4), "content": document.content,
            "quote": document.meta.get("focus") or (document.content or "")[:_MAX_QUOTE_CHARS], "meta": document.meta["meta"],
        }
        for number, document in enumerate(documents, 1)
    ]  # fmt: skip


def _failure(mode: str, error: Exception) -> RequestError:
    """The response to a pipeline failure: a `RequestError` inside Haystack's exception is passed on unchanged.

    Messages of other exceptions may quote the question, so they are neither returned nor logged.
    """
    chain = list(_causes(error))
    for one in chain:
        if isinstance(one, RequestError):
            return one
    root = chain[-1]
    component = next((name for one in chain if (name := getattr(one, "component_name", None))), None)
    what = f"the retrieval mode '{mode}'" + (f", component '{component}'," if component else "")
    place = next(iter(reversed(traceback.extract_tb(root.__traceback__))), None)
    where = f"{place.filename}:{place.lineno}" if place else "an unknown place"
    _LOG.error("%s failed: %s at %s", what, type(root).__name__, where)
    if any(map(_is_unavailable, chain)):
        message = f"{what} did not reach a service that it needs; retry later"
        return RequestError(503, message, code="retrieval_unavailable", headers={"retry-after": "2"})
    return retrieval_misconfigured(f"{what} failed ({type(root).__name__}); the log of retrieval says where")


def _is_unavailable(error: BaseException) -> bool:
    """Whether a service that a component calls is temporarily unavailable."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.is_server_error
    return isinstance(error, TimeoutError | ConnectionError | httpx.TransportError)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and what it was raised from, down to the first."""
    inner: BaseException | None = error
    while inner is not None:
        yield inner
        inner = inner.__cause__ or inner.__context__


def _since(started: float) -> float:
    return round((perf_counter() - started) * 1000, 2)
