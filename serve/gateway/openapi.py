"""OpenAPI 3.1 description of the API: every path with its parameters, bodies, statuses and examples.

It is built for the model, profiles and variants of one configuration, from the models that validate bodies (`serve.budget`,
`serve.gateway.documents_api`, `serve.request.grounding`, `serve.card`) and those that only describe them
(`serve.gateway.openapi_requests`, `serve.gateway.openapi_responses`).
"""

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.metadata import version
from typing import Any, Literal

import orjson
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from serve.budget import HEADERS, Budget
from serve.config.platform import PlatformConfig
from serve.gateway import openapi_requests as requests
from serve.gateway import openapi_responses as responses
from serve.gateway.documents_api import MAX_INPUTS, Embeddings, NewCalibration, NewDocument, Search
from serve.gateway.grounding import HEADER as RETRIEVAL_HEADER
from serve.gateway.idempotency import ANSWER_TTL_S, MAX_KEY_CHARS
from serve.retrieval.ingest.metadata import NO_NUL

Document = dict[str, Any]
_COLLECTION = "[a-z0-9][a-z0-9._-]{0,62}"
_JSON = "application/json"

_STATUSES: Mapping[int, str] = {
    400: "The request is malformed, or the engine counted more tokens than the context has (`context_length_exceeded`); "
    "`param` names the field, header or parameter.",
    401: "No API key, or one that is not known.",
    403: "Without a known API key: the request came under a host name, or from a web page, that is not allowed.",
    404: "There is no such model, variant, profile, document or collection; or this deployment has no retrieval.",
    408: "The body stopped arriving.",
    409: "Too many requests wait for one with the same `Idempotency-Key`.",
    413: "The body or the document is too large.",
    415: "The body is not declared as JSON or is compressed, or the document's type is not known.",
    422: "No variant can meet the budget, and the request said `reject`; the `Idempotency-Key` was used for another request; or "
    "the document can't be read.",
    429: "A limit of the API key, or every variant is at its limit; `code` names it.",
    500: "A fault in the gateway; the message has the request's id.",
    502: "An agent's model gave no answer that could be used.",
    503: "No variant, no retrieval or no rate-limit store can answer now.",
    504: "Retrieval did not answer in time.",
    507: "The document store's disk is full; nothing was changed.",
}
_GUARDED = (403, 503)  # statuses of operations that need a key
_SENT = (408, 413, 415, 429)  # statuses of operations with a body
_RETRY_AFTER = {"retry-after": ("seconds until it is worth trying again", {"type": "integer", "minimum": 1})}
_STATUS_HEADERS: Mapping[int, Mapping[str, tuple[str, Document]]] = {
    401: {"www-authenticate": ("always `Bearer`", {"type": "string"})},
    409: _RETRY_AFTER,
    429: _RETRY_AFTER,
    503: _RETRY_AFTER,
    504: _RETRY_AFTER,
}
_NUMBER = {"type": "number"}
_REPLAYED: Mapping[str, tuple[str, Document]] = {
    "idempotent-replayed": ("this is the answer of the same request before", {"const": "true"}),
}
_ROUTING_HEADERS: Mapping[str, tuple[str, Document]] = {
    "x-request-id": ("the request's own `x-request-id`, else one that the platform gave it", {"type": "string"}),
    "x-gearbox-variant": ("the variant that answered; `none`: no variant was used", {"type": "string"}),
    "x-gearbox-reason": ("why that variant", {"type": "string"}),
    "x-gearbox-predicted-ttft-ms": ("expected time to the first token", _NUMBER),
    "x-gearbox-predicted-e2e-ms": ("expected end-to-end time", _NUMBER),
    "x-gearbox-quality": ("of the variant, relative to `full`", _NUMBER),
    "x-gearbox-overhead-ms": ("time in the gateway before the dispatch, without retrieval", _NUMBER),
    RETRIEVAL_HEADER: ("how the request was grounded", {"type": "string"}),
    **_REPLAYED,
}


@dataclass(slots=True, frozen=True)
class Operation:
    """One method of one path."""

    method: Literal["get", "post", "delete"]
    path: str
    id: str
    tag: str
    summary: str
    answer: type[BaseModel] | str | None  # a model as JSON, or a content type
    statuses: Sequence[int] = ()  # statuses of errors, besides 500
    body: Sequence[type[BaseModel]] = ()  # alternative models of the body
    examples: Mapping[str, Document] | None = None  # of the body, by their summary
    parameters: Sequence[Document] = ()
    description: str = ""
    stream: type[BaseModel] | None = None  # the model of a stream's last event with data
    open: bool = False  # needs no key
    headers: Mapping[str, tuple[str, Document]] | None = None  # of the response


def describe(config: PlatformConfig) -> bytes:
    """The OpenAPI document of a platform with `config`, as JSON; cached, because building it takes 20 ms."""
    variants = tuple(variant.name for variant in config.variants)
    return _written(config.model.name, tuple(config.profiles), variants, config.access.allow_anonymous)


@lru_cache(maxsize=16)
def _written(name: str, profiles: tuple[str, ...], variants: tuple[str, ...], allow_anonymous: bool) -> bytes:
    document = deepcopy(_common())
    components = document["components"]["schemas"]
    choices = [f"@({_any(profiles)})", *([f":({_any(variants)})"] if variants else [])]
    routed = f"^{re.escape(name)}({'|'.join(choices)})?"
    examples = [name, f"{name}@{profiles[0]}", *(f"{name}:{variant}" for variant in variants[:1])]
    for kind, more in (("Chat", rf"(\+({_COLLECTION}))?$"), ("", "$")):
        for request in (f"{kind}CompletionRequest", f"Route{kind or 'Completion'}Request"):
            components[request]["properties"]["model"] |= {"pattern": routed + more, "examples": examples}
    document["info"]["title"] = f"Gearbox: {name}"
    if allow_anonymous:
        document["security"].append({})
    _fill(document["paths"], name)
    return orjson.dumps(document)


def operations() -> Sequence[Operation]:
    """Every operation of the API."""
    budget = _budget_parameters()
    return (
        Operation(
            "post", "/v1/chat/completions", "createChatCompletion", "generation", "Answer a conversation",
            responses.ChatCompletion, (400, 401, 404, 409, 413, 422, 429, 502, 503, 504),
            body=(requests.ChatCompletionRequest,), examples=_CHAT_EXAMPLES,
            parameters=(*budget, _retrieval(["on", "off"]), *_REQUEST_PARAMETERS, _IDEMPOTENCY_KEY),
            description=_GENERATION + " An answer may be grounded in indexed documents (`retrieval`).",
            stream=responses.ChatCompletionChunk, headers=_ROUTING_HEADERS,
        ),
        Operation(
            "post", "/v1/completions", "createCompletion", "generation", "Continue a text",
            responses.TextCompletion, (400, 401, 404, 409, 413, 422, 429, 503),
            body=(requests.CompletionRequest,), examples=_COMPLETION_EXAMPLES,
            parameters=(*budget, _retrieval(["off"]), *_REQUEST_PARAMETERS, _IDEMPOTENCY_KEY),
            description=_GENERATION,
            stream=responses.TextCompletionChunk, headers=_ROUTING_HEADERS,
        ),
        Operation(
            "post", "/v1/route", "route", "routing", "Dry run: where a request would go now",
            responses.RouteDecision, (400, 401, 404, 413, 422, 429, 503),
            body=(requests.RouteChatRequest, requests.RouteCompletionRequest), examples={**_CHAT_EXAMPLES, **_COMPLETION_EXAMPLES},
            parameters=(*budget, _retrieval(["on", "off"])),
            description="Takes a chat or completions body. Nothing is generated, nothing is counted against limits.",
        ),
        Operation("get", "/v1/models", "listModels", "routing", "Every name that `model` may have", responses.ModelList, (401,)),
        Operation(
            "get", "/v1/models/{id}", "getModel", "routing", "One of those names", responses.Model, (401, 404),
            parameters=(_parameter("path", "id", "a name from the list", {"type": "string", "minLength": 1}, "MODEL"),),
        ),
        Operation(
            "get", "/v1/variants", "listVariants", "routing", "The catalog: each variant's card and state",
            responses.VariantList, (401,),
        ),
        Operation(
            "post", "/v1/documents", "addDocument", "documents", "Index a document",
            responses.IndexedDocument, (400, 401, 404, 413, 415, 422, 429, 503, 507), body=(NewDocument,), examples=_DOCUMENT_EXAMPLES,
            description="Text, Markdown, HTML, PDF, DOCX or reStructuredText, in place of what its `source` had. A document "
            "belongs to the key's tenant; no other tenant sees it.",
        ),
        Operation(
            "get", "/v1/documents", "listDocuments", "documents", "List documents, or collections",
            responses.DocumentList, (400, 401, 404, 503, 504),
            parameters=(
                _parameter("query", "collection", "its documents; without it, the collections", _NAME),
                _parameter("query", "after", "a document's source, or a collection: the page begins after it", _NAME),
                _parameter("query", "limit", "of a page", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}),
            ),
        ),
        Operation(
            "delete", "/v1/documents", "deleteDocuments", "documents", "Remove a document or a collection",
            responses.Deleted, (400, 401, 404, 503, 504, 507),
            parameters=(
                _parameter("query", "collection", "the collection", _NAME, "default", required=True),
                _parameter("query", "source", "only this document", _NAME),
            ),
        ),
        Operation(
            "post", "/v1/search", "search", "documents", "Search without an answer",
            responses.SearchResult, (400, 401, 404, 413, 429, 503, 504), body=(Search,), examples=_SEARCH_EXAMPLES,
        ),
        Operation(
            "post", "/v1/calibration", "calibrate", "documents", "Set the threshold below which a collection does not answer",
            responses.Calibration, (400, 401, 404, 413, 422, 429, 503, 504), body=(NewCalibration,), examples=_CALIBRATION_EXAMPLES,
            description="From the support of questions that its documents answer, so that at most the share `rate` of such "
            "questions is abstained from. `gearbox calibrate` does it.",
        ),
        Operation(
            "get", "/v1/calibration", "getCalibration", "documents", "The threshold of a collection",
            responses.Calibration, (400, 401, 404, 503, 504), parameters=(_CALIBRATED,),
        ),
        Operation(
            "delete", "/v1/calibration", "deleteCalibration", "documents", "Return to the platform's default threshold",
            responses.Calibration, (400, 401, 404, 503, 504), parameters=(_CALIBRATED,),
        ),
        Operation(
            "post", "/v1/embeddings", "createEmbeddings", "documents", "Embed texts",
            responses.EmbeddingList, (400, 401, 404, 409, 413, 422, 429, 503, 504), body=(Embeddings,), examples=_EMBEDDING_EXAMPLES,
            parameters=(_IDEMPOTENCY_KEY,), headers=_REPLAYED,
            description=f"With the embedder that documents are indexed with; at most {MAX_INPUTS} texts.",
        ),
        Operation("get", "/healthz", "healthz", "health", "Liveness", responses.Health, open=True),
        Operation(
            "get", "/readyz", "readyz", "health", "Readiness: some variant can answer", responses.Readiness, (503,), open=True
        ),
        Operation(
            "get", "/readyz/all", "readyzAll", "health", "Readiness to replace other gateways", responses.Readiness, (503,),
            open=True, description="No variant is still starting, unless it takes longer than 15 minutes.",
        ),
        Operation(
            "get", "/openapi.json", "getOpenapi", "description", "This description", _JSON, open=True,
            headers={"etag": ("of the description", _TEXT)},
        ),
        Operation("get", "/docs", "getDocs", "description", "This description as a page", "text/html", open=True),
    )  # fmt: skip


def _allow_null(schema: Document) -> None:
    """Allow null for optional fields: `serve.gateway.documents_api` drops null fields before validation."""
    for name, field in schema["properties"].items():
        if name not in schema.get("required", ()) and {"type": "null"} not in field.get("anyOf", ()):
            annotations = {key: field.pop(key) for key in ("default", "description", "title") if key in field}
            schema["properties"][name] = {"anyOf": [field, {"type": "null"}], **annotations}


@cache
def _common() -> Document:
    """The parts that do not depend on the configuration. The object is cached: copy it before changing it."""
    used: dict[type[BaseModel], Literal["validation", "serialization"]] = {responses.Error: "serialization"}
    for operation in operations():
        used |= {model: "validation" for model in operation.body}
        used |= {model: "serialization" for model in (operation.answer, operation.stream) if isinstance(model, type)}
    _, definitions = models_json_schema(list(used.items()), ref_template="#/components/schemas/{model}")
    components = definitions["$defs"]
    for model in (NewDocument, Search, NewCalibration, Embeddings):
        _allow_null(components[model.__name__])
    for component in components.values():
        component.pop("title", None)
        for field in component.get("properties", {}).values():
            if isinstance(field, dict):
                field.pop("title", None)
                if field.get("default", ...) is None:
                    del field["default"]  # null and absent mean the same; examples are clearer without it
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Gearbox",
            "version": version("gearbox"),
            "summary": "One language model served as several variants; each request goes to the one that fits its budget.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "."}],  # relative to this document, so it works behind any path prefix
        "security": [{"bearer": []}],
        "tags": [{"name": name, "description": description} for name, description in _TAGS.items()],
        "paths": {},
        "components": {
            "schemas": components,
            "responses": {str(status): _error(status) for status in _STATUSES},
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An API key, `gbx-…`. Where anonymous access is allowed, requests need none.",
                }
            },
        },
    }


def _fill(paths: Document, model: str) -> None:
    """Add every operation, with `MODEL` in examples replaced by the served model's name."""
    for operation in operations():
        described: Document = {
            "operationId": operation.id,
            "tags": [operation.tag],
            "summary": operation.summary,
            "description": operation.description or f"{operation.summary}.",
            "responses": {"200": _answer(operation)}
            | {
                str(status): {"$ref": f"#/components/responses/{status}"}
                for status in sorted(
                    {*operation.statuses, 500, *_GUARDED * (not operation.open), *_SENT * bool(operation.body)}
                )
            },
        }
        if operation.open:
            described["security"] = []
        if operation.parameters:
            described["parameters"] = [dict(parameter) for parameter in operation.parameters]
        if operation.body:
            refs = [_ref(body_model) for body_model in operation.body]
            examples = {
                title: {"summary": title, "value": value} for title, value in (operation.examples or {}).items()
            }
            content: Document = {"schema": refs[0] if len(refs) == 1 else {"anyOf": refs}, "examples": examples}
            described["requestBody"] = {"required": True, "content": {_JSON: content}}
        named = _named(described, model)
        paths.setdefault(operation.path, {})[operation.method] = named


def _answer(operation: Operation) -> Document:
    answer: Document = {"description": "The answer."}
    if isinstance(operation.answer, str):
        schema: Document = {"type": "object" if operation.answer == _JSON else "string"}
        answer["content"] = {operation.answer: {"schema": schema}}
    elif operation.answer is not None:
        answer["content"] = {_JSON: {"schema": _ref(operation.answer)}}
    if operation.stream is not None:
        answer["content"]["text/event-stream"] = {
            "schema": {
                "type": "object",
                "description": "One event, with `stream: true`. After the last chunk, which has the `gearbox` object, comes "
                "`data: [DONE]`. Where the answer breaks off, an event `error` ends the stream instead.",
                "properties": {
                    "event": {"enum": ["message", "error"], "default": "message"},
                    "data": {
                        "type": "string",
                        "anyOf": [
                            {"const": "[DONE]"},
                            *(
                                {"contentMediaType": _JSON, "contentSchema": _ref(model)}
                                for model in (operation.stream, responses.Error)
                            ),
                        ],
                    },
                },
                "required": ["data"],
            }
        }
    if operation.headers:
        answer["headers"] = _headers(operation.headers)
    return answer


def _error(status: int) -> Document:
    response: Document = {
        "description": _STATUSES[status],
        "content": {_JSON: {"schema": _ref(responses.Error)}},
    }
    if headers := _STATUS_HEADERS.get(status):
        response["headers"] = _headers(headers)
    return response


def _headers(headers: Mapping[str, tuple[str, Document]]) -> Document:
    return {name: {"description": description, "schema": schema} for name, (description, schema) in headers.items()}


def _ref(model: type[BaseModel]) -> Document:
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def _any(names: Sequence[str]) -> str:
    return "|".join(map(re.escape, names))


def _named(value: Any, model: str) -> Any:
    """`value` with `MODEL` replaced by `model` in all strings."""
    if isinstance(value, dict):
        return {key: _named(item, model) for key, item in value.items()}
    if isinstance(value, list):
        return [_named(item, model) for item in value]
    return value.replace("MODEL", model) if isinstance(value, str) else value


def _parameter(
    where: str, name: str, description: str, schema: Document, example: Any = None, *, required: bool = False
) -> Document:
    extra = {} if example is None else {"example": example}
    needed = required or where == "path"
    return {"in": where, "name": name, "description": description, "required": needed, "schema": schema, **extra}


def _retrieval(values: list[str]) -> Document:
    return _parameter(
        "header", RETRIEVAL_HEADER, "wins over the body's `retrieval`", {"type": "string", "enum": values}
    )


def _budget_parameters() -> list[Document]:
    """Header parameters, one for each budget field."""
    fields = Budget.model_json_schema()["properties"]
    parameters = []
    for header, name in HEADERS.items():
        field = fields[name]
        description = f"{field['description']}; wins over the body's `budget.{name}`"
        schema = next((option for option in field.get("anyOf", ()) if option["type"] != "null"), field)
        schema = {key: value for key, value in schema.items() if key not in ("title", "description", "default")}
        parameters.append(_parameter("header", header, description, schema))
    return parameters


_TEXT: Document = {"type": "string"}
_NAME: Document = {"type": "string", "pattern": NO_NUL}
_REQUEST_PARAMETERS = [
    _parameter(
        "header", "x-request-id", "the request's id in logs and traces, at most 128 printable characters", _TEXT
    ),
    _parameter("header", "traceparent", "W3C trace context: the request's trace continues it", _TEXT),
]
_IDEMPOTENCY_KEY = _parameter(
    "header", "idempotency-key",
    f"requests with the same key and body within {ANSWER_TTL_S} s get the answer of the first; ignored with `stream: true`",
    {"type": "string", "minLength": 1, "maxLength": MAX_KEY_CHARS, "pattern": "^[!-~]([ -~]*[!-~])?$"},
)  # fmt: skip
_TAGS = {
    "generation": "OpenAI's chat completions and completions, routed by budget.",
    "routing": "What there is to route to, and where a request would go.",
    "documents": "Documents to answer from; only where the deployment has retrieval.",
    "health": "Probes.",
    "description": "The API itself.",
}
_GENERATION = (
    "The request goes to the variant that fits its budget: `x-gearbox-` headers win over the body's `budget`, that over the "
    "profile in `model`, that over the key's default. Works with any OpenAI client."
)
_HELLO = [{"role": "user", "content": "Say hello."}]
_CHAT_EXAMPLES: Mapping[str, Document] = {
    "By the key's default budget": {"model": "MODEL", "messages": _HELLO},
    "Streamed, within a time limit": {
        "model": "MODEL", "messages": _HELLO, "stream": True, "stream_options": {"include_usage": True}, "max_tokens": 64,
        "budget": {"ttft_ms": 500, "e2e_ms": 4000, "min_quality": 0.9},
    },
    "Answered from documents": {
        "model": "MODEL", "messages": [{"role": "user", "content": "Who leads Larkhaven?"}],
        "retrieval": {"collection": "default", "top_k": 4},
    },
    "With a tool": {
        "model": "MODEL", "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
        "tools": [{"type": "function", "function": {
            "name": "weather", "description": "The weather in a city.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        }}],
    },
}  # fmt: skip
_COMPLETION_EXAMPLES: Mapping[str, Document] = {
    "A text": {"model": "MODEL", "prompt": "Once upon a time", "max_tokens": 32},
    "Two answers to each of two texts": {"model": "MODEL", "prompt": ["Hello", "Goodbye"], "n": 2, "max_tokens": 8},
    "Token ids": {"model": "MODEL", "prompt": [504, 2365, 282], "max_tokens": 8},
}
_DOCUMENT_EXAMPLES: Mapping[str, Document] = {
    "A text": {"source": "news/1.md", "content": "# Larkhaven\n\nAda Quist leads Larkhaven.", "meta": {"year": 2026}},
    "A file": {"source": "note.txt", "data": "QWRhIFF1aXN0IGxlYWRzIExhcmtoYXZlbi4=", "collection": "default"},
}
_SEARCH_EXAMPLES: Mapping[str, Document] = {
    "A question": {"query": "Who leads Larkhaven?", "top_k": 5},
    "Only some documents": {
        "query": "Who leads Larkhaven?", "filters": {"field": "meta.year", "operator": ">=", "value": 2020},
    },
}  # fmt: skip
_CALIBRATION_EXAMPLES: Mapping[str, Document] = {
    "The fewest for one in ten": {"scores": [0.31, 0.44, 0.52, 0.58, 0.61, 0.66, 0.7, 0.75, 0.83], "rate": 0.1},
}
_CALIBRATED = _parameter("query", "collection", "the collection", _NAME, "default", required=True)
_EMBEDDING_EXAMPLES: Mapping[str, Document] = {
    "Two texts": {"input": ["Ada Quist leads Larkhaven.", "It rains."]},
    "In base64": {"input": "It rains.", "encoding_format": "base64"},
}
