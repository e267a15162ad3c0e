"""Access to the gateway: authentication and rate limits over HTTP."""

import time

import openai
import pytest

from benchmarks.lib.sample_catalog import MODEL
from serve.gateway.auth import hash_key
from tests.support.answers import EVERY_PATH, MESSAGES, error_of, streamed_or_not
from tests.support.gateway_server import Start, Started, bearer

KEYS = [
    {"sha256": hash_key("gbx-acme"), "tenant": "acme", "budget": "cheap", "requests_per_minute": 2},
    {"sha256": hash_key("gbx-other"), "tenant": "other", "tokens_per_minute": 10},
]
PROTECTED = [path for path in EVERY_PATH if path.startswith("/v1/")] + ["/v1/models/smollm2-135m"]


@pytest.fixture
def guarded(start_gateway: Start, monkeypatch: pytest.MonkeyPatch) -> Started:
    now = time.time() // 60 * 60 + 30  # the limits' minute must not end in the middle of a test
    monkeypatch.setattr(time, "time", lambda: now)
    return start_gateway(access={"keys": KEYS})


@pytest.mark.parametrize("path", PROTECTED)
@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "missing_api_key"),
        (bearer("gbx-typo"), "invalid_api_key"),
        ({"authorization": "Basic x"}, "invalid_api_key"),
    ],
)
def test_without_a_known_key_everything_is_401(guarded: Started, path, headers, code):
    method = EVERY_PATH.get(path, "GET")
    response = guarded.http.request(method, path, headers=headers, content=b"not even read")
    error = error_of(response, 401)
    assert (error["code"], error["type"]) == (code, "authentication_error")
    assert response.headers["www-authenticate"] == "Bearer"
    assert "gbx-typo" not in response.text


def test_health_needs_no_key(guarded: Started):
    assert guarded.http.get("/healthz").status_code == guarded.http.get("/readyz").status_code == 200


def test_the_official_client_raises_its_own_error(guarded: Started):
    with pytest.raises(openai.AuthenticationError, match="not known"):
        guarded.sdk("gbx-typo").chat.completions.create(model=MODEL, messages=MESSAGES)


def test_a_keys_default_budget_is_used(guarded: Started):
    assert guarded.chat(headers=bearer("gbx-acme")).headers["x-gearbox-variant"] == "distilled"


def test_over_the_request_limit_is_429(guarded: Started):
    for _ in range(2):
        assert guarded.chat(headers=bearer("gbx-acme")).status_code == 200
    response = guarded.chat(headers=bearer("gbx-acme"))
    assert error_of(response, 429)["code"] == "requests_per_minute"
    assert 1 <= int(response.headers["retry-after"]) <= 60
    assert guarded.chat(headers=bearer("gbx-other")).status_code == 200, "other tenants go on"
    assert guarded.http.get("/v1/models", headers=bearer("gbx-acme")).status_code == 200, "only generation counts"


@streamed_or_not
def test_over_the_token_limit_is_429_for_the_next_request(guarded: Started, stream):
    assert guarded.chat(headers=bearer("gbx-other"), stream=stream).status_code == 200  # 8 of 10 tokens
    assert guarded.chat(headers=bearer("gbx-other"), stream=stream).status_code == 200  # 16
    guarded.settle()
    response = guarded.chat(headers=bearer("gbx-other"), stream=stream)
    assert error_of(response, 429)["code"] == "tokens_per_minute"
    assert 1 <= int(response.headers["retry-after"]) <= 60


def test_a_malformed_request_costs_nothing(guarded: Started):
    for _ in range(5):
        assert guarded.post("/v1/chat/completions", {"model": MODEL}, bearer("gbx-acme")).status_code == 400
        assert guarded.chat(model="gpt-4", headers=bearer("gbx-acme")).status_code == 404
    assert guarded.chat(headers=bearer("gbx-acme")).status_code == 200


def test_cost_is_counted_for_the_tenant(guarded: Started):
    guarded.chat(headers=bearer("gbx-acme"))
    cost = guarded.sample("gearbox_cost_usd_total", tenant="acme", variant="distilled")
    assert cost == pytest.approx(guarded.variants["distilled"].cost_usd(2, 6))


def test_anonymous_access_takes_the_key_that_a_client_insists_on_sending(gateway: Started):
    assert gateway.chat(headers=bearer("sk-unused")).status_code == 200
    assert gateway.sample("gearbox_cost_usd_total", tenant="anonymous", variant="full") > 0
