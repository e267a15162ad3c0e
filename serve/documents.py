"""The gateway's /v1/documents, /v1/search and /v1/embeddings: checks what is asked and hands it to the retrieval deployment."""

import asyncio
import base64
import binascii
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import parse_qs

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serve.card import first_problem
from serve.config import Name, RetrievalConfig
from serve.errors import RequestError
from serve.grounding import Retrieval
from serve.retrieval.convert import ConversionError, kind_of

MAX_INPUTS = 2048  # texts of one embeddings request, OpenAI's limit
_MAX_INPUT_CHARS = 2_000_000  # of all of them
_WAIT_S = 120.0  # for anything but a document to be indexed: embedding the most that is allowed takes that long
_OVERHEAD_BYTES = 1 << 16  # of a document's request beside its content


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NewDocument(_Body):
    """A document to index: its text, or its bytes in base64."""

    collection: Name = "default"
    source: Annotated[str, Field(min_length=1, max_length=1024)]
    content: str | None = None
    data: str | None = None
    type: Annotated[str, Field(max_length=200)] | None = None
    title: Annotated[str, Field(max_length=1000)] | None = None
    meta: dict[str, Any] = Field(default_factory=dict)


class Search(_Body):
    """A search without an answer."""

    collection: Name = "default"
    query: Annotated[str, Field(min_length=1, max_length=20_000)]
    top_k: Annotated[int, Field(ge=1, le=20, strict=True)] = 10
    mode: Name = "hybrid"
    filters: dict[str, Any] | None = None
    min_score: Annotated[float, Field(ge=0, le=1, strict=True)] | None = None


class Embeddings(BaseModel):
    """OpenAI's embeddings request."""

    model_config = ConfigDict(extra="forbid")

    input: str | list[str]
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: str | None = None


class Documents:
    """What the three paths do. All raise `RequestError`."""

    def __init__(self, config: RetrievalConfig | None, retrieval: Retrieval) -> None:
        self._config = config
        self._retrieval = retrieval

    @property
    def max_body_bytes(self) -> int:
        """Of a request with a document: base64 and JSON's escapes make it longer than the document."""
        return 2 * self._settings().max_document_bytes + _OVERHEAD_BYTES

    async def add(self, tenant: str, body: object) -> dict[str, Any]:
        """Index a document in place of what its source had."""
        asked = _parsed(NewDocument, body)
        if (asked.content is None) == (asked.data is None):
            raise RequestError(
                400, "exactly one of 'content' and 'data' is needed", param="content", code="invalid_document"
            )
        data = asked.content.encode("utf-8", "replace") if asked.content is not None else _decoded(asked.data or "")
        limit = self._settings().max_document_bytes
        if len(data) > limit:
            raise RequestError(413, f"the document is larger than {limit} bytes", code="document_too_large")
        kind = asked.type
        if asked.content is not None:  # it was UTF-8 in the request, whatever the document says
            kind = f"{(kind or _kind_of_text(asked.source)).partition(';')[0]}; charset=utf-8"
        made = await self._retrieval.call(
            "index", tenant=tenant, collection=asked.collection, source=asked.source, data=data, kind=kind,
            title=asked.title, meta=asked.meta,
        )  # fmt: skip
        return {"object": "document", "source": asked.source, "collection": asked.collection, **made}

    async def listed(self, tenant: str, query: bytes) -> dict[str, Any]:
        """A page of a collection's documents, or the tenant's collections."""
        self._settings()
        asked = _query(query, {"collection", "after", "limit"})
        if "collection" not in asked:
            return {"object": "list", "data": await self._call("collections", tenant=tenant)}
        limit = asked.get("limit", "100")
        if not limit.isdecimal() or len(limit) > 4 or not 1 <= int(limit) <= 1000:
            raise RequestError(400, "'limit' is from 1 to 1000", param="limit", code="invalid_limit")
        found = await self._call(
            "documents",
            tenant=tenant,
            collection=asked["collection"],
            after=asked.get("after", ""),
            limit=int(limit) + 1,
        )
        return {"object": "list", "data": found[: int(limit)], "has_more": len(found) > int(limit)}

    async def delete(self, tenant: str, query: bytes) -> dict[str, Any]:
        """Remove a document or a collection."""
        self._settings()
        asked = _query(query, {"collection", "source"})
        if "collection" not in asked:
            raise RequestError(400, "'collection' is required", param="collection", code="missing_collection")
        source = asked.get("source")
        gone = await self._call("delete", tenant=tenant, collection=asked["collection"], source=source)
        if not gone:
            what = f"document '{source}' in it" if source is not None else "such collection"
            raise RequestError(
                404, f"collection '{asked['collection']}': there is no {what}", code="document_not_found"
            )
        return {"deleted": gone}

    async def search(self, tenant: str, body: object) -> dict[str, Any]:
        """Passages with their support."""
        self._settings()
        asked = _parsed(Search, body)
        found = await self._call(
            "search", tenant=tenant, collection=asked.collection, question=asked.query, top_k=asked.top_k,
            mode=asked.mode, filters=asked.filters, min_score=asked.min_score,
        )  # fmt: skip
        return {
            "object": "list", "support": found["support"], "grounded": bool(found["passages"]), "data": found["passages"],
            "timings_ms": found["timings_ms"], "ms": found["ms"],
        }  # fmt: skip

    async def embed(self, body: object) -> dict[str, Any]:
        """Embeddings in OpenAI's shape."""
        settings = self._settings()
        asked = _parsed(Embeddings, body)
        texts = [asked.input] if isinstance(asked.input, str) else asked.input
        if not texts or not all(texts):
            raise RequestError(400, "'input' must not be empty", param="input", code="invalid_input")
        if len(texts) > MAX_INPUTS or sum(map(len, texts)) > _MAX_INPUT_CHARS:
            limit = f"{MAX_INPUTS} texts, {_MAX_INPUT_CHARS} characters"
            raise RequestError(413, f"'input' is more than {limit}", param="input", code="input_too_large")
        made = await self._call("embed", texts=texts)
        vectors = made["vectors"]
        if asked.dimensions not in (None, vectors.shape[1]):
            message = f"the embeddings have {vectors.shape[1]} dimensions"
            raise RequestError(400, message, param="dimensions", code="invalid_dimensions")
        as_text = asked.encoding_format == "base64"
        data = [
            {
                "object": "embedding", "index": i,
                "embedding": base64.b64encode(vector.tobytes()).decode() if as_text else vector.tolist(),
            }
            for i, vector in enumerate(vectors)
        ]  # fmt: skip
        usage = {"prompt_tokens": made["tokens"], "total_tokens": made["tokens"]}
        return {"object": "list", "data": data, "model": asked.model or settings.embedder, "usage": usage}

    async def _call(self, method: str, **arguments: Any) -> Any:
        """Ask the retrieval deployment, which may be away, starting or busy."""
        try:
            async with asyncio.timeout(_WAIT_S):
                return await self._retrieval.call(method, **arguments)
        except TimeoutError as error:
            message = f"retrieval did not answer within {_WAIT_S:g} s"
            raise RequestError(504, message, code="retrieval_timeout", headers={"retry-after": "5"}) from error

    def _settings(self) -> RetrievalConfig:
        if self._config is None:
            raise RequestError(404, "this deployment has no retrieval", code="not_found")
        return self._config


_M = TypeVar("_M", bound=BaseModel)


def _parsed(shape: type[_M], body: object) -> _M:
    if not isinstance(body, dict):
        raise RequestError(400, "the body must be a JSON object", code="invalid_body")
    try:
        return shape.model_validate(body)
    except ValidationError as error:
        param = str(error.errors()[0]["loc"][0])
        raise RequestError(400, first_problem(error), param=param, code="invalid_field") from error


def _query(query: bytes, known: set[str]) -> Mapping[str, str]:
    try:
        asked = {name: values[-1] for name, values in parse_qs(query.decode(), keep_blank_values=True).items()}
    except UnicodeDecodeError as error:
        raise RequestError(400, "the query is not UTF-8", code="invalid_query") from error
    for name in asked.keys() - known:
        raise RequestError(400, f"unknown parameter '{name[:80]}'", code="invalid_query")
    return asked


def _kind_of_text(source: str) -> str:
    """By the name's ending; text of any other name is plain."""
    try:
        return kind_of(source)
    except ConversionError:
        return "text"


def _decoded(data: str) -> bytes:
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(400, "'data' is not valid base64", param="data", code="invalid_base64") from error
