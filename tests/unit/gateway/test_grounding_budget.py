"""Budgets of grounded requests: fewer sources, skipped retrieval, timeouts, and `/v1/route` for computed answers."""

from typing import Any

import pytest

from benchmarks.lib.sample_catalog import MODEL
from benchmarks.lib.scripted_retrieval import PASSAGE, QUESTION, FakeRetrieval
from serve.config.retrieval import RetrievalConfig
from serve.errors import RequestError
from serve.gateway.grounding import Grounder
from serve.request.grounding import GroundingOptions
from serve.telemetry.metrics import Metrics
from tests.support.answers import ask, error_of, gearbox_of, streamed_or_not
from tests.support.gateway_server import Started


class TestBudget:
    @pytest.mark.parametrize(("choice", "outcome", "passages"), [("shrink", "shrunk", 1), ("skip", "skipped", 0)])
    def test_a_budget_that_carries_some_of_the_sources(self, grounded: Started, retrieval, choice, outcome, passages):
        retrieval.passages = [{**PASSAGE, "n": n} for n in range(1, 5)]

        def carried(cost: float) -> int:
            return grounded.post("/v1/route", _body(cost)).json()["retrieval"]["top_k"]

        coarse = (1e-7 * 1.1**i for i in range(200))
        carries_none = next(cost for cost in coarse if carried(cost) == 0)  # far below, sources are no question
        cost = next(cost for i in range(50) if carried(cost := carries_none * 1.01**i) == 1)
        answer = ask(grounded, budget={"max_cost": cost}, retrieval={"on_budget": choice})
        facts = gearbox_of(answer, False)["retrieval"]
        assert (facts["outcome"], facts["passages"], facts["why"]) == (
            outcome,
            passages,
            "the budget allows 1 of 4 sources",
        )

    @pytest.mark.parametrize("choice", ["shrink", "skip"])
    def test_a_budget_that_carries_none_goes_without_and_says_so(
        self, grounded: Started, retrieval: FakeRetrieval, choice
    ):
        facts = gearbox_of(ask(grounded, budget={"ttft_ms": 120}, retrieval={"on_budget": choice}), False)
        assert (facts["retrieval"]["outcome"], facts["grounded"]) == ("skipped", False)
        assert "budget" in facts["retrieval"]["why"]
        assert retrieval.calls == []

    def test_a_request_may_refuse_to_go_without(self, grounded: Started):
        error = error_of(ask(grounded, budget={"ttft_ms": 120}, retrieval={"on_budget": "refuse"}), 422)
        assert (error["code"], error["param"]) == ("impossible_budget", "retrieval.on_budget")
        assert grounded.engine_calls() == {}

    def test_a_search_that_takes_longer_than_the_budget_is_given_up(self, grounded: Started, retrieval: FakeRetrieval):
        retrieval.search_s = 5
        answer = ask(grounded, model=f"{MODEL}:distilled", budget={"ttft_ms": 280}, max_tokens=1)
        assert gearbox_of(answer, False)["retrieval"]["outcome"] == "skipped"
        assert retrieval.cancelled == 1

    @pytest.mark.parametrize(
        ("on_budget", "room", "outcome", "left", "why"),
        [
            ("shrink", 130, "used", 4, None),
            ("shrink", 75, "shrunk", 2, "the context has room for 2 of 4 sources"),
            ("shrink", 50, "shrunk", 1, "the context has room for 1 of 4 sources"),
            ("shrink", 20, "skipped", 0, "the context has no room for the source"),
            ("skip", 75, "skipped", 0, "the context has no room for 4 sources"),
        ],
    )  # fmt: skip
    @streamed_or_not
    def test_sources_that_the_engine_finds_no_room_for_are_left_out(
        self, grounded: Started, retrieval: FakeRetrieval, on_budget, room, outcome, left, why, stream
    ):
        retrieval.passages = [{**PASSAGE, "n": n} for n in range(1, 5)]
        for engine in grounded.engines.values():
            engine.max_prompt_chars = room
        facts = gearbox_of(ask(grounded, retrieval={"on_budget": on_budget, "top_k": 4}, stream=stream), stream)
        reported = facts["retrieval"]
        assert (reported["outcome"], reported["passages"], reported["why"]) == (outcome, left, why)
        sent = grounded.engines["full"].requests[-1]
        assert sent["messages"][-1]["content"] == PASSAGE["quote"] * left + " " * bool(left) + QUESTION
        assert ("temperature" in sent) == bool(left), "nothing of the sources stays"
        grounded.settle()
        for one in ("used", "shrunk", "skipped"):
            count = grounded.metrics.registry.get_sample_value("gearbox_grounded_requests_total", {"outcome": one})
            assert (count or 0) == (one == outcome)

    def test_sources_without_room_are_an_error_where_the_request_says_so(self, grounded: Started, retrieval):
        grounded.engines["full"].max_prompt_chars = 20
        error = error_of(ask(grounded, retrieval={"on_budget": "refuse"}), 422)
        assert (error["code"], error["param"]) == ("impossible_budget", "retrieval.on_budget")
        assert error["message"] == "the context has no room for the source"

    def test_what_is_too_long_without_sources_is_400(self, grounded: Started, retrieval: FakeRetrieval):
        grounded.engines["full"].max_prompt_chars = 5
        assert error_of(ask(grounded), 400)["code"] == "context_length_exceeded"
        retrieval.calls.clear()
        assert error_of(ask(grounded, max_tokens=5000), 400)["param"] == "max_tokens"
        assert retrieval.calls == [], "fewer sources would not help"

    async def test_slow_searches_are_forgotten_so_that_requests_with_limits_search_again(self, monkeypatch):
        now = 0.0
        monkeypatch.setattr("serve.gateway.grounding.perf_counter", lambda: now)
        retrieval = FakeRetrieval()
        grounder = Grounder(RetrievalConfig(), retrieval, Metrics(), "http://here/v1")
        options = GroundingOptions.model_validate(
            {"collection": "docs", "mode": "hybrid", "top_k": 1, "on_budget": "shrink", "on_unsupported": "answer",
             "unverified": "mark", "tools": ()}
        )  # fmt: skip
        for _ in range(64):
            grounder._took(now - 5)
        assert grounder.plan(options, lambda chars, seconds: seconds < 1)[0] == 0
        now = 61.0
        assert grounder.plan(options, lambda chars, seconds: seconds < 1)[0] == 1

    def test_a_search_without_a_budget_that_hangs_is_an_error(self, grounded: Started, retrieval: FakeRetrieval):
        retrieval.search_s = 5
        assert error_of(ask(grounded), 504)["code"] == "retrieval_timeout"
        assert retrieval.cancelled == 1

    def test_a_store_that_is_down_is_an_error_that_says_when_to_retry(
        self, grounded: Started, retrieval: FakeRetrieval
    ):
        retrieval.error = RequestError(503, "down", code="store_unavailable", headers={"retry-after": "2"})
        response = ask(grounded)
        assert error_of(response, 503)["code"] == "store_unavailable"
        assert response.headers["retry-after"] == "2"
        retrieval.error = None
        assert ask(grounded).status_code == 200

    def test_the_search_counts_into_the_time_to_the_first_token_and_not_into_the_overhead(
        self, grounded: Started, retrieval
    ):
        retrieval.search_s = 0.1
        response = ask(grounded, stream=True)
        assert gearbox_of(response, True)["ttft_ms"] > 100
        assert float(response.headers["x-gearbox-overhead-ms"]) < 100


def _body(max_cost: float) -> dict[str, Any]:
    return {
        "model": MODEL, "messages": [{"role": "user", "content": QUESTION}], "budget": {"max_cost": max_cost}, "retrieval": True,
    }  # fmt: skip


class TestDryRun:
    def test_what_is_computed_goes_to_no_variant(self, grounded: Started, retrieval: FakeRetrieval):
        request = {
            "model": MODEL,
            "messages": [{"role": "user", "content": "What is 6 * 7?"}],
            "retrieval": {"collection": None},
        }
        shown = grounded.post("/v1/route", {**request, "budget": {"e2e_ms": 1, "on_no_candidate": "reject"}})
        assert shown.is_success
        decision = shown.json()
        answered = gearbox_of(grounded.post("/v1/chat/completions", request), False)
        assert decision["variant"] is answered["variant"] is None
        assert decision["reason"] == answered["reason"] == "computed"
        assert (decision["cost_usd"], decision["candidates"], decision["quality"]) == (0, [], None)
        usual = grounded.post("/v1/route", {**request, "retrieval": False}).json()
        assert decision.keys() == usual.keys()

    def test_what_is_computed_for_the_model_goes_where_it_would(self, grounded: Started, retrieval: FakeRetrieval):
        request = {
            "model": MODEL,
            "messages": [{"role": "user", "content": "What is 6 * 7?"}],
            "retrieval": True,
            "logprobs": True,
        }
        shown = grounded.post("/v1/route", request).json()
        assert shown["variant"] == "full" and "retrieval" not in shown
        assert retrieval.calls == []
