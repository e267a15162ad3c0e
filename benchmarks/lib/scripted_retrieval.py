"""A retrieval deployment with scripted answers, for the gateway's tests."""

import asyncio
from typing import Any

import numpy as np

from serve.errors import RequestError
from serve.retrieval.ingest.metadata import check_meta
from serve.retrieval.verify.calibration import TooFewQuestions, conformal_threshold

QUESTION = "Who leads Larkhaven?"
PASSAGE = {
    "n": 1, "source": "news/1.md", "title": "News", "heading": "", "page": None, "score": 0.9,
    "content": "Ada Quist leads Larkhaven. It rains.", "quote": "Ada Quist leads Larkhaven.", "meta": {"date": "2026-01-01"},
}  # fmt: skip


class FakeRetrieval:
    """A retrieval deployment with scripted answers."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.passages: list[dict[str, Any]] = [PASSAGE]
        self.error: RequestError | None = None
        self.check_error: RequestError | None = None
        self.search_s = 0.0
        self.verification_s = 0.0
        self.supported: bool | None = True
        self.cancelled = 0
        self.missing: set[str] = set()  # collections that do not exist

    def calls_of(self, method: str) -> list[dict[str, Any]]:
        """The arguments of every call of `method`."""
        return [arguments for name, arguments in self.calls if name == method]

    async def call(self, method: str, **arguments: Any) -> Any:
        """Like `serve.retrieval.service.Service.call`."""
        self.calls.append((method, arguments))
        try:
            return await getattr(self, f"_{method}")(**arguments)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def _ground(self, question: str, top_k: int, collection: str, **_: Any) -> dict[str, Any]:
        await asyncio.sleep(self.search_s)
        if self.error:
            raise self.error
        self._find(collection)
        passages = self.passages[:top_k]
        prompt = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "".join(one["quote"] for one in passages) + " " + question},
        ]
        return {
            "support": 0.9 if passages else 0.1,
            "passages": passages,
            "prompt": prompt,
            "timings_ms": {"dense": 1.5},
            "starts_ms": {"dense": 0.5},
            "ms": 2.0,
        }

    async def _check(self, answer: str, passages: list[str], question: str, heads: list[str]) -> list[dict[str, Any]]:
        await asyncio.sleep(self.verification_s)
        if self.check_error:
            raise self.check_error
        source = 1 if self.supported else None
        return [{"start": 0, "end": len(answer), "supported": self.supported, "score": 0.8, "source": source}]

    async def _agent(self, **_: Any) -> dict[str, Any]:
        if self.error:
            raise self.error
        used = [{"name": "calculator", "input": {"expression": "2+2"}, "output": "2 + 2 = 4"}]
        return {
            "text": "It is 4.",
            "tools": used,
            "usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12},
            "cost_usd": 0.002,
            "attempts": 2,
        }

    def _find(self, collection: str) -> None:
        if collection in self.missing:
            message = f"collection '{collection}' does not exist"
            raise RequestError(404, message, param="collection", code="collection_not_found")

    async def _exists(self, tenant: str, collection: str) -> bool:
        await asyncio.sleep(self.search_s)
        return collection not in self.missing

    async def _embed(self, texts: list[str], **_: Any) -> dict[str, Any]:
        return {"vectors": np.ones((len(texts), 4), np.float32), "tokens": 3 * len(texts)}

    async def _index(self, meta: object = None, **_: Any) -> dict[str, Any]:
        check_meta(meta or {})
        return {"status": "added", "chunks": 1, "sha256": "00", "ms": 1.0}

    async def _documents(self, collection: str, limit: int, **_: Any) -> list[dict[str, Any]]:
        self._find(collection)
        return [{"source": str(i)} for i in range(limit)]

    async def _collections(self, after: str, limit: int, **_: Any) -> list[dict[str, Any]]:
        names = [name for name in ("docs", "handbook", "news") if name > after]
        return [{"collection": name, "documents": 1, "chunks": 2} for name in names[:limit]]

    async def _delete(self, collection: str, source: str | None, **_: Any) -> int:
        self._find(collection)
        return 2

    async def _calibration(self, collection: str, **_: Any) -> dict[str, Any]:
        self._find(collection)
        return {"collection": collection, "threshold": 0.25, "rate": 0.05, "questions": None, "calibrated_at": None}

    async def _calibrate(self, collection: str, scores: list[float], rate: float, **_: Any) -> dict[str, Any]:
        try:
            threshold = conformal_threshold(scores, rate)
        except TooFewQuestions as error:
            raise RequestError(422, str(error), param="scores", code="too_few_questions") from error
        self._find(collection)
        stored = {"threshold": threshold, "rate": rate, "questions": len(scores), "calibrated_at": 1.0}
        return {"collection": collection, **stored}

    _delete_calibration = _calibration

    async def _search(self, collection: str, **_: Any) -> dict[str, Any]:
        self._find(collection)
        return {
            "support": 0.9, "supported": bool(self.supported), "passages": self.passages, "timings_ms": {}, "starts_ms": {},
            "ms": 1.0,
        }  # fmt: skip
