"""The OpenAPI description: complete, valid, and consistent with the gateway's routes and rejections."""

import functools
import json
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from benchmarks.lib.sample_catalog import MODEL, make_config
from benchmarks.lib.scripted_retrieval import FakeRetrieval
from serve.budget import HEADERS, Budget, resolve_budget
from serve.errors import RequestError
from serve.gateway.auth import hash_key
from serve.gateway.documents_api import Embeddings, NewDocument, Search, _parsed
from serve.gateway.grounding import Grounder
from serve.gateway.openapi import describe
from serve.gateway.static_pages import page_routes
from serve.request.call import PATHS, parse_call
from serve.request.grounding import GroundingOptions
from serve.retrieval.ingest.metadata import check_meta
from serve.telemetry.metrics import Metrics
from tests.support.gateway_server import Start, Started

CONFIG = make_config(retrieval={})
DOCUMENT = json.loads(describe(CONFIG))
GROUNDER = Grounder(CONFIG.retrieval, FakeRetrieval(), Metrics(), "http://127.0.0.1:1/v1")
OPERATIONS = [(path, method, one) for path, methods in DOCUMENT["paths"].items() for method, one in methods.items()]
MESSAGES = [{"role": "user", "content": "hello there"}]
CHAT = {"model": MODEL, "messages": MESSAGES}
COMPLETION = {"model": MODEL, "prompt": "hello there"}


@functools.cache
def validator(name: str) -> jsonschema.Draft202012Validator:
    schema = {"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}
    return jsonschema.Draft202012Validator(schema)


def test_it_is_a_valid_description():
    from schemathesis.specs.openapi.definitions import OPENAPI_31_VALIDATOR  # slow to import

    OPENAPI_31_VALIDATOR.validate(DOCUMENT)
    for component in DOCUMENT["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(component)


def test_every_reference_leads_somewhere():
    def references(value: Any):
        if isinstance(value, dict):
            yield from [value["$ref"]] if isinstance(value.get("$ref"), str) else []
            value = list(value.values())
        if isinstance(value, list):
            for one in value:
                yield from references(one)

    for reference in set(references(DOCUMENT)):
        found = DOCUMENT
        for part in reference.removeprefix("#/").split("/"):
            found = found[part]


def test_every_bound_is_json_schemas():
    """pydantic writes `ge` instead of `minimum` where it loses track of the type: nobody would read it."""

    def keys(value: Any):
        if isinstance(value, dict):
            yield from value
            value = list(value.values())
        if isinstance(value, list):
            for one in value:
                yield from keys(one)

    assert not {"ge", "gt", "le", "lt", "allow_inf_nan"} & set(keys(DOCUMENT["components"]))


def test_it_describes_every_route_and_no_other(gateway: Started):
    routes = {path: set(handlers) - {"HEAD"} for path, handlers in gateway.app._routes.items()}
    routes |= {path: {"POST"} for path in PATHS}
    pages = {path for path in page_routes() if path != "/docs"}
    routes = {
        path.replace("/v1/models/", "/v1/models/{id}"): methods for path, methods in routes.items() if path not in pages
    }
    assert routes == {path: {method.upper() for method in methods} for path, methods in DOCUMENT["paths"].items()}


def test_every_budget_header_is_described_like_its_field():
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/route"):
        headers = {one["name"]: one for one in DOCUMENT["paths"][path]["post"]["parameters"] if one["in"] == "header"}
        assert headers.keys() >= {*HEADERS, "x-gearbox-retrieval"}
        assert headers["x-gearbox-slo-ttft-ms"]["schema"]["exclusiveMinimum"] == 0
        assert headers["x-gearbox-min-quality"]["schema"] == {"type": "number", "minimum": 0, "maximum": 1}
        assert headers["x-gearbox-objective"]["schema"]["enum"] == ["quality", "cost", "latency"]


@pytest.mark.parametrize(
    ("path", "method", "operation"), OPERATIONS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_operation_says_all_that_a_reader_needs(path, method, operation):
    assert operation["operationId"] and operation["summary"] and operation["description"] and operation["tags"]
    assert {"200", "500"} <= operation["responses"].keys()
    if path.startswith("/v1/"):
        assert "401" in operation["responses"] and "security" not in operation
    else:
        assert operation["security"] == []
    for body in operation.get("requestBody", {}).get("content", {}).values():
        assert body["examples"]
        schema = {**body["schema"], "components": DOCUMENT["components"]}
        for one in body["examples"].values():
            jsonschema.Draft202012Validator(schema).validate(one["value"])


def test_every_example_is_answered(start_gateway: Start):
    gateway = start_gateway(searches=FakeRetrieval(), retrieval={})
    answered = 0
    for path, method, operation in OPERATIONS:
        for body in operation.get("requestBody", {}).get("content", {}).values():
            for title, one in body["examples"].items():
                response = gateway.http.request(method, path, json=one["value"])
                assert response.status_code == 200, (path, title, response.text)
                answered += 1
    assert answered > 15


def test_streaming_is_described():
    for path, chunk in (("/v1/chat/completions", "ChatCompletionChunk"), ("/v1/completions", "TextCompletionChunk")):
        event = DOCUMENT["paths"][path]["post"]["responses"]["200"]["content"]["text/event-stream"]["schema"]
        assert chunk in json.dumps(event) and "[DONE]" in json.dumps(event)


def test_names_are_those_of_the_deployment():
    config = make_config(
        model={"name": "other-1.5", "source": "none"},
        variants=[{"name": "small", "weights": "none"}],
        profiles={"mine": {}},
    )
    document = json.loads(describe(config))
    pattern = document["components"]["schemas"]["ChatCompletionRequest"]["properties"]["model"]["pattern"]
    accepts = jsonschema.Draft202012Validator({"pattern": pattern}).is_valid
    for name in (
        "other-1.5",
        "other-1.5@mine",
        "other-1.5@fast",
        "other-1.5:small",
        "other-1.5+docs",
        "other-1.5:small+docs",
    ):
        assert accepts(name), name
    for name in (
        "other-1x5",
        "other-1.5:full",
        "other-1.5@",
        "other-1.5:",
        "x",
        "",
        "other-1.5+DOCS",
        "other-1.5@mine:small",
    ):
        assert not accepts(name), name
    assert "MODEL" not in json.dumps(document["paths"])


def test_anonymous_access_needs_no_key():
    assert {} in json.loads(describe(make_config(access={"allow_anonymous": True})))["security"]
    keys = {"keys": [{"sha256": hash_key("gbx-x"), "tenant": "x"}]}
    assert json.loads(describe(make_config(access=keys)))["security"] == [{"bearer": []}]


def test_it_is_served_without_a_key_and_cached_by_its_etag(start_gateway: Start):
    gateway = start_gateway(access={"keys": [{"sha256": hash_key("gbx-x"), "tenant": "tenant-x"}]})
    response = gateway.http.get("/openapi.json")
    assert response.json() == json.loads(describe(gateway.config))
    assert response.headers["content-type"] == "application/json"
    assert gateway.http.get("/openapi.json", headers={"if-none-match": response.headers["etag"]}).status_code == 304
    head = gateway.http.head("/openapi.json")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(response.content))
    assert "tenant-x" not in response.text and hash_key("gbx-x") not in response.text


def test_a_new_profile_is_described_at_once(gateway: Started):
    gateway.app.reconfigure(make_config(profiles={"fresh": {"max_cost": 1}}))
    assert (
        "fresh"
        in gateway.http.get("/openapi.json").json()["components"]["schemas"]["CompletionRequest"]["properties"][
            "model"
        ]["pattern"]
    )


def test_the_page_loads_only_from_the_gateway(gateway: Started):
    page = gateway.http.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy
    assert "http" not in page.text.replace("https://www.w3.org", "")
    for name in ("start.js", "swagger-ui-bundle.js", "swagger-ui.css"):
        assert f"docs/{name}" in page.text
        assert gateway.http.get(f"/docs/{name}").status_code == 200


# ----------------------------------------------------------- what the gateway refuses, and what the description forbids

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5)
    | st.sampled_from(["", "0", "8", "true", 0, 1, 8.0, 8.5, -1, "quality", "reject", {}, [], [[]], [{}], 5e-324, "a" * 961]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["include_usage", "top_k", "e2e_ms", "role", "x"]), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
budgets = st.dictionaries(st.sampled_from([*Budget.model_fields, "other"]), json_values, max_size=3)
retrievals = st.dictionaries(
    st.sampled_from([*GroundingOptions.model_fields, "other"]),
    json_values | st.sampled_from(["default", "hybrid", "shrink", "answer", "quote", ["clock"], "ABC"]),
    max_size=3,
)  # fmt: skip
#: Fields whose every value the gateway itself accepts or refuses; what is inside messages and prompts is the engine's.
OWNED = ["model", "stream", "stream_options", "max_tokens", "cache_salt", "budget", "retrieval"]
careful = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def refused(body: dict[str, Any], endpoint: str) -> bool:
    """By what reads the body: the protocol, the budget and grounding, as `Generation` calls them."""
    try:
        call = parse_call(json.dumps(body).encode(), endpoint, "tenant")
        resolve_budget(Budget(), call.budget, {})
        GROUNDER.resolve_options(call, {})
    except RequestError as error:
        assert error.status == 400, error
        return True
    return False


def agree(name: str, endpoint: str, body: dict[str, Any]) -> None:
    if body["model"] != MODEL and isinstance(body["model"], str) and body["model"]:
        return  # names are looked up: 404
    errors = [error.message for error in validator(name).iter_errors(body)]
    assert refused(body, endpoint) == bool(errors), (body, errors)


@careful
@given(
    st.sampled_from([*OWNED, "messages", "max_completion_tokens"]).flatmap(
        lambda name: st.tuples(st.just(name), json_values | budgets | retrievals)
    )
)
@example(("stream", 0))
@example(("stream_options", {"include_usage": {}}))
@example(("max_tokens", 8.0))
@example(("max_tokens", True))
@example(("cache_salt", {}))
@example(("budget", {"ttft_ms": "5"}))
@example(("budget", {"ttft_ms": 0}))
@example(("budget", {"objective": None}))
@example(("retrieval", {"agent": 1}))
@example(("retrieval", {"top_k": 8.0}))
@example(("retrieval", 0))
@example(("messages", [{}, 5]))
def test_a_chat_is_refused_exactly_where_the_description_forbids_it(field):
    agree("RouteChatRequest", "chat", {**CHAT, field[0]: field[1]})


@pytest.mark.parametrize("header", [{}, {"x-gearbox-retrieval": "off"}])
@pytest.mark.parametrize("text", ["", "+", "+docs", "+*", "+DOCS", "@fast", "@fast+docs", ":int8+*"])
def test_a_name_is_read_whole_though_a_header_switches_retrieval_off(text, header):
    for endpoint, valid, name in (
        ("chat", CHAT, "RouteChatRequest"),
        ("completions", COMPLETION, "RouteCompletionRequest"),
    ):
        body = {**valid, "model": MODEL + text}
        raw = json.dumps(body).encode()
        if validator(name).is_valid(body):
            GROUNDER.resolve_options(parse_call(raw, endpoint, "tenant"), header)
        else:
            with pytest.raises(RequestError):
                GROUNDER.resolve_options(parse_call(raw, endpoint, "tenant"), header)


def test_only_token_ids_are_biased():
    allowed = validator("ChatCompletionRequest").is_valid
    assert allowed({**CHAT, "logit_bias": {"50256": -100}})
    assert not any(allowed({**CHAT, "logit_bias": bias}) for bias in ({"": None}, {"x": 1}, {"5": 101}, {"5": None}))


@careful
@given(st.sampled_from([*OWNED, "prompt"]).flatmap(lambda name: st.tuples(st.just(name), json_values | budgets)))
@example(("prompt", [True]))
@example(("prompt", [1.0, 2]))
@example(("prompt", [""]))
@example(("prompt", []))
@example(("prompt", [1, "a"]))
@example(("retrieval", {}))
@example(("retrieval", True))
@example(("retrieval", False))
def test_a_completion_is_refused_exactly_where_the_description_forbids_it(field):
    agree("RouteCompletionRequest", "completions", {**COMPLETION, field[0]: field[1]})


@careful
@given(
    st.sampled_from(sorted(set(DOCUMENT["components"]["schemas"]["ChatCompletionRequest"]["properties"]))).flatmap(
        lambda name: st.tuples(st.just(name), json_values)
    )
)
def test_no_chat_that_the_description_allows_is_refused(field):
    body = {**CHAT, field[0]: field[1]}
    if validator("ChatCompletionRequest").is_valid(body):
        assert not refused(body, "chat")


@pytest.mark.parametrize(("shape", "valid"), [
    (NewDocument, {"source": "a.md", "content": "text"}), (Search, {"query": "who?"}), (Embeddings, {"input": "text"}),
])  # fmt: skip
def test_bodies_of_documents_are_refused_exactly_where_the_description_forbids_them(shape, valid):
    allowed = validator(shape.__name__).is_valid

    @careful
    @given(
        st.dictionaries(
            st.sampled_from([*shape.model_fields, "other"]),
            json_values | st.sampled_from(["default", "AAAA"]),
            max_size=3,
        )
    )
    def check(fields):
        body = {**valid, **fields}
        if shape is NewDocument and (body.get("content") is None) == (body.get("data") is None):
            assert not allowed(body)  # refused by `Documents.add`
            return
        if (
            "data" in fields
            or ("input" in fields and not fields["input"])
            or (isinstance(fields.get("input"), list) and not all(fields["input"]))
        ):
            return  # checked by `Documents`: base64, empty texts
        try:
            parsed = _parsed(shape, body)
            if shape is NewDocument:
                check_meta(parsed.meta)
        except RequestError:
            assert not allowed(body), body
        else:
            assert allowed(body), body

    check()
