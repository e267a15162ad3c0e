"""The gateway's /v1/documents, /v1/search and /v1/embeddings: checks what is asked and hands it to the retrieval deployment."""

import asyncio
import base64
import binascii
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import parse_qs

import msgspec
import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serve.card import first_problem
from serve.config.platform import Name, RetrievalConfig
from serve.errors import RequestError
from serve.gateway.grounding import Retrieval
from serve.gateway.http import BodyMemory
from serve.request.json_body import read_json
from serve.request.json_types import INTEGRAL
from serve.retrieval.ingest.convert import ConversionError, kind_of

MAX_INPUTS = 2048  # texts of one embeddings request, OpenAI's limit
_MAX_INPUT_CHARS = 2_000_000  # of all of them
_WAIT_S = 120.0  # for anything but a document to be indexed: embedding the most that is allowed takes that long
_FIELD_BYTES = 1 << 17  # of a document's field that is not its content, as JSON
_SLICE = 1 << 18  # bytes of content that are decoded in one go: for that long, no other thread runs
_CUT = 4096  # bytes before the end of a slice of text in which there is a place to cut
_BASE64 = "^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class NewDocument(_Body):
    """A document to index: its text, or its bytes in base64."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {"required": [one], "properties": {one: {"type": "string"}, other: {"type": "null"}}}
                for one, other in (("content", "data"), ("data", "content"))
            ]
        }
    )

    collection: Name = "default"
    source: Annotated[str, Field(min_length=1, max_length=1024)]
    content: str | None = None
    data: Annotated[str, Field(json_schema_extra={"pattern": _BASE64})] | None = None
    type: Annotated[str, Field(max_length=200)] | None = None
    title: Annotated[str, Field(max_length=1000)] | None = None
    meta: dict[str, Any] = Field(default_factory=dict)


class Search(_Body):
    """A search without an answer."""

    collection: Name = "default"
    query: Annotated[str, Field(min_length=1, max_length=20_000)]
    top_k: Annotated[int, Field(ge=1, le=20), INTEGRAL] = 10
    mode: Name = "hybrid"
    filters: dict[str, Any] | None = None
    min_score: Annotated[float, Field(ge=0, le=1, strict=True)] | None = None


class Embeddings(BaseModel):
    """OpenAI's embeddings request."""

    model_config = ConfigDict(extra="forbid", strict=True)

    input: str | list[str] = Field(
        json_schema_extra={
            "anyOf": [
                {"type": "string", "minLength": 1},
                {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1, "maxItems": MAX_INPUTS},
            ]
        }
    )
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1), INTEGRAL] | None = None
    user: str | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1), INTEGRAL] | None = None
    truncation_side: Literal["left", "right"] = "right"


class Documents:
    """What the three paths do. All raise `RequestError`."""

    def __init__(self, config: RetrievalConfig | None, retrieval: Retrieval) -> None:
        self._config = config
        self._retrieval = retrieval

    def uploads(self) -> BodyMemory:
        """The memory for the bodies of documents, of one gateway."""
        if self._config is None:
            return BodyMemory(0)
        settings = self._config
        most = settings.max_concurrent_upload_bytes or 4 * settings.max_upload_bytes
        return BodyMemory(most, settings.max_concurrent_uploads, "too_many_uploads")

    @property
    def max_body_bytes(self) -> int:
        """Of a request with a document."""
        return self._settings().max_upload_bytes

    async def add(self, tenant: str, raw: bytes) -> dict[str, Any]:
        """Index the document in a request's body in place of what its source had."""
        limit = self._settings().max_document_bytes
        asked, data, as_text = await asyncio.to_thread(_document, raw, limit)
        del raw  # indexing takes long
        kind = asked.type
        if as_text:  # it was UTF-8 in the request, whatever the document says
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
        limit = asked.get("limit", "100")
        if not (limit.isascii() and limit.isdecimal()) or len(limit) > 4 or not 1 <= int(limit) <= 1000:
            raise RequestError(400, "'limit' is from 1 to 1000", param="limit", code="invalid_limit")
        if "collection" not in asked:
            return {"object": "list", "data": await self._call("collections", tenant=tenant)}
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
        try:
            found = await self._call(
                "search", tenant=tenant, collection=asked.collection, question=asked.query, top_k=asked.top_k,
                mode=asked.mode, filters=asked.filters, min_score=asked.min_score,
            )  # fmt: skip
        except RequestError as error:
            error.param = error.param and error.param.removeprefix("retrieval.")  # a chat has these fields in there
            raise
        return {
            "object": "list", "support": found["support"], "grounded": found["supported"], "data": found["passages"],
            "timings_ms": found["timings_ms"], "ms": found["ms"],
        }  # fmt: skip

    async def embed(self, body: object) -> dict[str, Any]:
        """Embeddings in OpenAI's shape."""
        settings = self._settings()
        asked = _parsed(Embeddings, _with_text(body))
        names = settings.embedding_models
        if asked.model is not None and asked.model not in (*names, settings.embedder):
            message = f"model '{asked.model[:200]}' does not exist; embeddings are made by '{names[0]}'"
            raise RequestError(404, message, param="model", code="model_not_found")
        texts = [asked.input] if isinstance(asked.input, str) else asked.input
        if not texts or not all(texts):
            raise RequestError(400, "'input' must not be empty", param="input", code="invalid_input")
        if len(texts) > MAX_INPUTS or sum(map(len, texts)) > _MAX_INPUT_CHARS:
            limit = f"{MAX_INPUTS} texts, {_MAX_INPUT_CHARS} characters"
            raise RequestError(413, f"'input' is more than {limit}", param="input", code="input_too_large")
        made = await self._call(
            "embed", texts=texts, truncate=asked.truncate_prompt_tokens, side=asked.truncation_side,
            dimensions=asked.dimensions,
        )  # fmt: skip
        as_text = asked.encoding_format == "base64"
        data = [
            {
                "object": "embedding", "index": i,
                "embedding": base64.b64encode(vector.tobytes()).decode() if as_text else vector.tolist(),
            }
            for i, vector in enumerate(made["vectors"])
        ]  # fmt: skip
        usage = {"prompt_tokens": made["tokens"], "total_tokens": made["tokens"]}
        return {"object": "list", "data": data, "model": asked.model or names[0], "usage": usage}

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
    """A body as `shape`; a field that is null is one that is left out. Raises `RequestError`."""
    if not isinstance(body, dict):
        raise RequestError(400, "the body must be a JSON object", code="invalid_body")
    try:
        return shape.model_validate(
            {name: value for name, value in body.items() if value is not None or name not in shape.model_fields}
        )
    except ValidationError as error:
        param = str(error.errors()[0]["loc"][0])
        raise RequestError(400, first_problem(error), param=param, code="invalid_field") from error


def _query(query: bytes, known: set[str]) -> Mapping[str, str]:
    try:
        asked = {name: values[-1] for name, values in parse_qs(query.decode(), keep_blank_values=True).items()}
    except UnicodeDecodeError as error:
        raise RequestError(400, "the query is not UTF-8", code="invalid_query") from error
    for name in asked.keys() - known:
        raise RequestError(400, f"unknown parameter '{name[:80]}'", param=name[:80], code="invalid_query")
    for name, value in asked.items():
        if "\0" in value:
            raise RequestError(
                400, f"'{name}' has a NUL character, which no name has", param=name, code="invalid_query"
            )
    return asked


def _kind_of_text(source: str) -> str:
    """By the name's ending; text of any other name is plain."""
    try:
        return kind_of(source)
    except ConversionError:
        return "text"


_DocumentFields = msgspec.defstruct(
    "_DocumentFields",
    [(name, msgspec.Raw, msgspec.Raw(b"null")) for name in NewDocument.model_fields],
    forbid_unknown_fields=True,
)


def _document(raw: bytes, limit: int) -> tuple[NewDocument, bytes, bool]:
    """A document's fields without its content, its bytes, at most `limit`, and whether they were given as text.

    Meant for a thread. Fields are decoded one by one, each when its size is known: parsed whole, a body of many megabytes
    could become many gigabytes of small objects, and no other thread runs meanwhile.

    Raises:
        RequestError: 400 for a body that is no document, 413 for too large a one.
    """
    try:
        views = {name: memoryview(value) for name, value in msgspec.structs.asdict(_fields(raw)).items()}
        fields = {name: view for name, view in views.items() if bytes(view[:4]) != b"null"}
        content, data = fields.pop("content", None), fields.pop("data", None)
        for name, value in fields.items():
            if len(value) > _FIELD_BYTES:
                raise RequestError(400, f"'{name}' is too long", param=name, code="invalid_field")
        asked = _parsed(NewDocument, {name: read_json(bytes(value)) for name, value in fields.items()})
        if (content is None) == (data is None):
            raise RequestError(
                400, "exactly one of 'content' and 'data' is needed", param="content", code="invalid_document"
            )
        for name, given in (("content", content), ("data", data)):
            if given is not None and bytes(given[:1]) != b'"':
                raise RequestError(400, f"'{name}' must be a string", param=name, code="invalid_field")
        if data is not None:
            return asked, _decoded(data, limit), False
        return asked, _text(content[1:-1] if content is not None else memoryview(b""), limit), True
    except orjson.JSONDecodeError as error:
        raise _invalid_json(error) from error


def _fields(raw: bytes) -> msgspec.Struct:
    """The fields of a document's body, each as JSON. Raises `RequestError`."""
    try:
        return msgspec.json.decode(raw, type=_DocumentFields)
    except msgspec.ValidationError as error:  # not an object, or "Object contains unknown field `NAME`"
        _, found, unknown = str(error).partition("unknown field `")
        if not found:
            raise RequestError(400, "the body must be a JSON object", code="invalid_body") from error
        name = unknown.removesuffix("`")[:80]
        raise RequestError(400, f"unknown field '{name}'", param=name, code="invalid_field") from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise _invalid_json(error) from error


def _text(value: memoryview, limit: int) -> bytes:
    """The UTF-8 of what stands between a JSON string's quotes, a slice at a time.

    Before a space, or before a character of several bytes, no escape sequence is cut in two.
    """
    parts, size, at = [], 0, 0
    while at < len(value):
        end = at + _SLICE
        if end < len(value):
            cuts = [match.start() for match in re.finditer(rb"[ \xc0-\xff]", value[end - _CUT : end])]
            end = end - _CUT + cuts[-1] if cuts else len(value)
        parts.append(orjson.loads(b"".join((b'"', value[at:end], b'"'))).encode())
        size += len(parts[-1])
        if size > limit:
            raise _too_large(limit)
        at = end
    return b"".join(parts)


def _decoded(value: memoryview, limit: int) -> bytes:
    """The bytes that a JSON string has in base64, a slice at a time."""
    escaped = re.search(rb"\\", value)  # a slash may be
    value = memoryview(orjson.loads(value).encode()) if escaped else value[1:-1]
    if len(value) > 4 * (limit // 3 + 1):
        raise _too_large(limit)
    parts = []
    try:
        for at in range(0, len(value), _SLICE):
            parts.append(binascii.a2b_base64(value[at : at + _SLICE], strict_mode=True))
            if at + _SLICE < len(value) and len(parts[-1]) != _SLICE // 4 * 3:
                raise binascii.Error("padding before the end")
    except binascii.Error as error:
        raise RequestError(400, "'data' is not valid base64", param="data", code="invalid_base64") from error
    data = b"".join(parts)
    if len(data) > limit:
        raise _too_large(limit)
    return data


def _with_text(body: object) -> object:
    """An embeddings body whose `input` is a string or a list of strings; anything else is refused in plain words.

    Token ids mean something only with the tokenizer that made them. Clients such as LangChain send those of OpenAI's, and
    nothing in the request tells them from ours: the embedding would be that of another text.
    """
    if not isinstance(body, dict):
        return body
    value = body.get("input")
    if value is None:
        raise RequestError(400, "'input' is required", param="input", code="invalid_input")
    if isinstance(value, str) or (isinstance(value, list) and all(isinstance(one, str) for one in value)):
        return body
    if isinstance(value, list) and all(_are_ids(one) if isinstance(one, list) else _are_ids([one]) for one in value):
        message = (
            "'input' has token ids, and which tokenizer made them is not known: send text. In LangChain: "
            "OpenAIEmbeddings(..., check_embedding_ctx_length=False)"
        )
        raise RequestError(400, message, param="input", code="token_ids_not_supported")
    raise RequestError(400, "'input' must be a string or a list of strings", param="input", code="invalid_input")


def _are_ids(values: list[object]) -> bool:
    return all(type(value) is int for value in values)


def _too_large(limit: int) -> RequestError:
    return RequestError(413, f"the document is larger than {limit} bytes", code="document_too_large")


def _invalid_json(error: Exception) -> RequestError:
    return RequestError(400, f"the body is not valid JSON: {error}", code="invalid_json")
