"""Documents API: validate requests to /v1/documents, /v1/search, /v1/calibration and /v1/embeddings, and call retrieval."""

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

from serve.config.retrieval import RetrievalConfig
from serve.config.sections import Name
from serve.errors import RequestError
from serve.gateway.grounding import Retrieval
from serve.gateway.http import BodyMemory
from serve.request.json_body import read_json
from serve.request.json_types import INTEGRAL
from serve.retrieval.ingest.convert import ConversionError, kind_of
from serve.retrieval.ingest.metadata import META_SCHEMA
from serve.retrieval.verify.calibration import FALSE_ABSTENTION, MAX_SCORES
from serve.validation import first_problem

MAX_INPUTS = 2048  # texts in one embeddings request, OpenAI's limit
_MAX_INPUT_CHARS = 2_000_000  # of all texts together
_WAIT_S = 120.0  # for all calls but indexing; embedding the largest allowed request takes about as long
_LARGEST_HELD = 4  # bodies of the largest document that a gateway has in memory
_FIELD_BYTES = 1 << 17  # of a document's field other than its content, as JSON
_SLICE = 1 << 18  # bytes of content decoded at once: decoding holds the GIL
_CUT = 4096  # bytes before a slice's end that are searched for a place to split
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
    meta: dict[str, Any] = Field(default_factory=dict, json_schema_extra=META_SCHEMA)


class Search(_Body):
    """A search without an answer."""

    collection: Name = "default"
    query: Annotated[str, Field(min_length=1, max_length=20_000)]
    top_k: Annotated[int, Field(ge=1, le=20), INTEGRAL] = 10
    mode: Name = "hybrid"
    filters: dict[str, Any] | None = None
    min_score: Annotated[float, Field(ge=0, le=1, strict=True)] | None = None


class NewCalibration(_Body):
    """Support of questions that a collection's documents answer, as `/v1/search` says it."""

    collection: Name = "default"
    scores: Annotated[list[Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]], Field(max_length=MAX_SCORES)]
    rate: Annotated[float, Field(ge=0.001, le=0.5)] = FALSE_ABSTENTION


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
    """Handlers of the documents API. All raise `RequestError`."""

    def __init__(self, config: RetrievalConfig | None, retrieval: Retrieval) -> None:
        self._config = config
        self._retrieval = retrieval

    def uploads(self) -> BodyMemory:
        """The memory of one gateway for document bodies."""
        if self._config is None:
            return BodyMemory(0)
        settings = self._config
        return BodyMemory(
            _LARGEST_HELD * settings.max_upload_bytes, settings.max_concurrent_uploads, "too_many_uploads"
        )

    @property
    def max_body_bytes(self) -> int:
        """Maximum body size of a request with a document."""
        return self._settings().max_upload_bytes

    async def add(self, tenant: str, raw: bytes) -> dict[str, Any]:
        """Index the document in a request's body; it replaces the document of the same source."""
        limit = self._settings().max_document_bytes
        document, data, as_text = await asyncio.to_thread(_document, raw, limit)
        del raw  # free the body's memory: indexing takes long
        kind = document.type
        if as_text:  # JSON is UTF-8, whatever charset the document declares
            kind = f"{(kind or _kind_of_text(document.source)).partition(';')[0]}; charset=utf-8"
        result = await self._retrieval.call(
            "index", tenant=tenant, collection=document.collection, source=document.source, data=data, kind=kind,
            title=document.title, meta=document.meta,
        )  # fmt: skip
        return {"object": "document", "source": document.source, "collection": document.collection, **result}

    async def listed(self, tenant: str, query: bytes) -> dict[str, Any]:
        """List one page of a collection's documents, or of the tenant's collections."""
        self._settings()
        params = _query(query, {"collection", "after", "limit"})
        limit = params.get("limit", "100")
        if not (limit.isascii() and limit.isdecimal()) or len(limit) > 4 or not 1 <= int(limit) <= 1000:
            raise RequestError(400, "'limit' is from 1 to 1000", param="limit", code="invalid_limit")
        page = {"tenant": tenant, "after": params.get("after", ""), "limit": int(limit) + 1}
        if "collection" in params:
            rows = await self._call("documents", collection=params["collection"], **page)
        else:
            rows = await self._call("collections", **page)
        return {"object": "list", "data": rows[: int(limit)], "has_more": len(rows) > int(limit)}

    async def delete(self, tenant: str, query: bytes) -> dict[str, Any]:
        """Delete a document or a collection."""
        self._settings()
        params = _query(query, {"collection", "source"}, needs_collection=True)
        where = {"tenant": tenant, "collection": params["collection"], "source": params.get("source")}
        return {"deleted": await self._call("delete", **where)}

    async def search(self, tenant: str, body: object) -> dict[str, Any]:
        """Search passages, with their support scores."""
        self._settings()
        request = _parsed(Search, body)
        try:
            result = await self._call(
                "search", tenant=tenant, collection=request.collection, question=request.query, top_k=request.top_k,
                mode=request.mode, filters=request.filters, min_score=request.min_score,
            )  # fmt: skip
        except RequestError as error:
            error.param = error.param and error.param.removeprefix(
                "retrieval."
            )  # in a chat request these fields are below `retrieval`
            raise
        return {
            "object": "list", "support": result["support"], "grounded": result["supported"], "data": result["passages"],
            "timings_ms": result["timings_ms"], "ms": result["ms"],
        }  # fmt: skip

    async def calibrate(self, tenant: str, body: object) -> dict[str, Any]:
        """Set a collection's threshold of support."""
        self._settings()
        request = _parsed(NewCalibration, body)
        arguments = {"collection": request.collection, "scores": request.scores, "rate": request.rate}
        return {"object": "calibration", **await self._call("calibrate", tenant=tenant, **arguments)}

    async def calibration(self, tenant: str, query: bytes, method: str = "calibration") -> dict[str, Any]:
        """The threshold of a collection; `delete_calibration`: after it was set back to the platform's default."""
        self._settings()
        params = _query(query, {"collection"}, needs_collection=True)
        return {"object": "calibration", **await self._call(method, tenant=tenant, collection=params["collection"])}

    async def embed(self, body: object) -> dict[str, Any]:
        """Compute embeddings; the response has OpenAI's format."""
        settings = self._settings()
        request = _parsed(Embeddings, _with_text(body))
        names = settings.embedding_models
        if request.model is not None and request.model not in (*names, settings.embedder):
            message = f"model '{request.model[:200]}' does not exist; embeddings are made by '{names[0]}'"
            raise RequestError(404, message, param="model", code="model_not_found")
        texts = [request.input] if isinstance(request.input, str) else request.input
        if not texts or not all(texts):
            raise RequestError(400, "'input' must not be empty", param="input", code="invalid_input")
        if len(texts) > MAX_INPUTS or sum(map(len, texts)) > _MAX_INPUT_CHARS:
            limit = f"{MAX_INPUTS} texts, {_MAX_INPUT_CHARS} characters"
            raise RequestError(413, f"'input' is larger than {limit}", param="input", code="input_too_large")
        result = await self._call(
            "embed", texts=texts, truncate=request.truncate_prompt_tokens, side=request.truncation_side,
            dimensions=request.dimensions,
        )  # fmt: skip
        as_text = request.encoding_format == "base64"
        data = [
            {
                "object": "embedding", "index": i,
                "embedding": base64.b64encode(vector.tobytes()).decode() if as_text else vector.tolist(),
            }
            for i, vector in enumerate(result["vectors"])
        ]  # fmt: skip
        usage = {"prompt_tokens": result["tokens"], "total_tokens": result["tokens"]}
        return {"object": "list", "data": data, "model": request.model or names[0], "usage": usage}

    async def _call(self, method: str, **arguments: Any) -> Any:
        """Call the retrieval deployment, which may be unavailable, starting or busy."""
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
    """Validate a body as `shape`; null fields count as absent. Raises `RequestError`."""
    if not isinstance(body, dict):
        raise RequestError(400, "the body must be a JSON object", code="invalid_body")
    try:
        return shape.model_validate(
            {name: value for name, value in body.items() if value is not None or name not in shape.model_fields}
        )
    except ValidationError as error:
        param = str(error.errors()[0]["loc"][0])
        raise RequestError(400, first_problem(error), param=param, code="invalid_field") from error


def _query(query: bytes, known: set[str], *, needs_collection: bool = False) -> Mapping[str, str]:
    try:
        params = {name: values[-1] for name, values in parse_qs(query.decode(), keep_blank_values=True).items()}
    except UnicodeDecodeError as error:
        raise RequestError(400, "the query is not UTF-8", code="invalid_query") from error
    for name in params.keys() - known:
        raise RequestError(400, f"unknown parameter '{name[:80]}'", param=name[:80], code="invalid_query")
    for name, value in params.items():
        if "\0" in value:
            raise RequestError(
                400, f"'{name}' has a NUL character, which no name has", param=name, code="invalid_query"
            )
    if needs_collection and "collection" not in params:
        raise RequestError(400, "'collection' is required", param="collection", code="missing_collection")
    return params


def _kind_of_text(source: str) -> str:
    """The text format by the file extension; plain text for all other names."""
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
    """Parse an upload: the fields without the content, the content's bytes (at most `limit`), whether it was sent as text.

    Runs in a thread. Each field is decoded by itself, after its size was checked: parsed as a whole, a body of many megabytes
    could become many gigabytes of small objects, and parsing would hold the GIL for that long.

    Raises:
        RequestError: 400 for a body that is not a document, 413 for a document that is too large.
    """
    try:
        views = {name: memoryview(value) for name, value in msgspec.structs.asdict(_fields(raw)).items()}
        fields = {name: view for name, view in views.items() if bytes(view[:4]) != b"null"}
        content, data = fields.pop("content", None), fields.pop("data", None)
        for name, value in fields.items():
            if len(value) > _FIELD_BYTES:
                raise RequestError(400, f"'{name}' is too long", param=name, code="invalid_field")
        document = _parsed(NewDocument, {name: read_json(bytes(value)) for name, value in fields.items()})
        if (content is None) == (data is None):
            raise RequestError(
                400, "exactly one of 'content' and 'data' is needed", param="content", code="invalid_document"
            )
        for name, string in (("content", content), ("data", data)):
            if string is not None and bytes(string[:1]) != b'"':
                raise RequestError(400, f"'{name}' must be a string", param=name, code="invalid_field")
        if data is not None:
            return document, _decoded(data, limit), False
        return document, _text(content[1:-1] if content is not None else memoryview(b""), limit), True
    except orjson.JSONDecodeError as error:
        raise _invalid_json(error) from error


def _fields(raw: bytes) -> msgspec.Struct:
    """The fields of a document's body, each as JSON. Raises `RequestError`."""
    try:
        return msgspec.json.decode(raw, type=_DocumentFields)
    except msgspec.ValidationError as error:  # not an object, or "Object contains unknown field `NAME`"
        _, separator, unknown = str(error).partition("unknown field `")
        if not separator:
            raise RequestError(400, "the body must be a JSON object", code="invalid_body") from error
        name = unknown.removesuffix("`")[:80]
        raise RequestError(400, f"unknown field '{name}'", param=name, code="invalid_field") from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise _invalid_json(error) from error


def _text(value: memoryview, limit: int) -> bytes:
    """Decode the inside of a JSON string to UTF-8, slice by slice.

    Slices end before a space or a multi-byte character, where no escape sequence is split.
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
            raise _too_large("content", limit)
        at = end
    return b"".join(parts)


def _decoded(value: memoryview, limit: int) -> bytes:
    """Decode a JSON string of base64 to bytes, slice by slice."""
    escaped = re.search(rb"\\", value)  # JSON allows an escaped slash
    value = memoryview(orjson.loads(value).encode()) if escaped else value[1:-1]
    if len(value) > 4 * (limit // 3 + 1):
        raise _too_large("data", limit)
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
        raise _too_large("data", limit)
    return data


def _with_text(body: object) -> object:
    """Check that `input` of an embeddings body is a string or a list of strings. Raises `RequestError`.

    Token IDs are rejected: clients such as LangChain send IDs of OpenAI's tokenizer, which a request does not identify, and the
    embedding would be that of another text.
    """
    if not isinstance(body, dict):
        return body
    value = body.get("input")
    if value is None:
        raise RequestError(400, "'input' is required", param="input", code="invalid_input")
    if isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, str) for item in value)):
        return body
    if isinstance(value, list) and all(
        _are_ids(item) if isinstance(item, list) else _are_ids([item]) for item in value
    ):
        message = (
            "'input' has token ids, and which tokenizer made them is not known: send text. In LangChain: "
            "OpenAIEmbeddings(..., check_embedding_ctx_length=False)"
        )
        raise RequestError(400, message, param="input", code="token_ids_not_supported")
    raise RequestError(400, "'input' must be a string or a list of strings", param="input", code="invalid_input")


def _are_ids(values: list[object]) -> bool:
    return all(type(value) is int for value in values)


def _too_large(field: str, limit: int) -> RequestError:
    return RequestError(413, f"the document is larger than {limit} bytes", param=field, code="document_too_large")


def _invalid_json(error: Exception) -> RequestError:
    return RequestError(400, f"the body is not valid JSON: {error}", code="invalid_json")
