"""Online estimation in the gateway: it learns from measured latencies, reports predictions, and adapts its routing."""

from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.lib.sample_catalog import MODEL
from serve.budget import Budget
from serve.request.engine_report import EngineReport
from serve.request.lifecycle import Attempt
from tests.support.gateway_server import Start, Started

ASKED = {"model": f"{MODEL}:full", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 11}


def expected_ttft_ms(gateway: Started, variant: str = "full") -> float:
    return gateway.post("/v1/route", {**ASKED, "model": f"{MODEL}:{variant}"}).json()["predicted_ttft_ms"]


@pytest.mark.parametrize("stream", [False, True])
def test_predictions_come_near_what_answers_take(gateway: Started, stream):
    before = expected_ttft_ms(gateway)
    for _ in range(12):
        gateway.chat(max_tokens=11, model=f"{MODEL}:full", stream=stream)
    assert before == pytest.approx(400, rel=0.01), "the profile's"
    assert expected_ttft_ms(gateway) < 100, "the engine answers at once"
    assert expected_ttft_ms(gateway, "int8") == pytest.approx(200, rel=0.01), "the others have shown nothing"


@pytest.mark.parametrize("behaviour", ["die", "500", "error event first"])
def test_an_answer_that_did_not_come_whole_teaches_nothing(gateway: Started, behaviour):
    gateway.engines["full"].behaviour = behaviour
    gateway.chat(max_tokens=11, model=f"{MODEL}:full", stream=True)
    assert expected_ttft_ms(gateway) == pytest.approx(400, rel=0.01)


def test_every_answer_says_what_was_expected_beside_what_happened(gateway: Started):
    metadata = gateway.chat(max_tokens=11).json()["gearbox"]
    assert set(metadata["predicted"]) == {
        f"{what}{bound}_ms" for what in ("ttft", "tpot", "e2e") for bound in ("", "_p95")
    }
    for what in ("ttft", "tpot", "e2e"):
        assert metadata["predicted"][f"{what}_p95_ms"] > metadata["predicted"][f"{what}_ms"] > 0


def test_whether_predictions_held_is_counted(gateway: Started):
    gateway.chat(max_tokens=11, model=f"{MODEL}:full")
    for what in ("ttft", "e2e"):
        assert gateway.sample("gearbox_prediction_coverage_total", variant="full", metric=what, covered="yes") == 1
        no = gateway.metrics.registry.get_sample_value(
            "gearbox_prediction_coverage_total", {"variant": "full", "metric": what, "covered": "no"}
        )
        assert no == 0, "it is there before the first that does not hold"
        assert gateway.sample("gearbox_prediction_error_ratio_count", variant="full", metric=what) == 1


def test_of_several_sequences_the_time_of_one_is_held_against_what_was_predicted():
    request: Any = SimpleNamespace(arrived=0.0, call=SimpleNamespace(sequences=4))
    decision: Any = None
    attempt = Attempt(
        request, decision, dispatched=1.0, first_token_at=2.0, last_token_at=3.0, report=EngineReport(10, 4 * 11)
    )
    assert attempt.latency == (1000, 100, 2000) and attempt.tpot_ms == 100


def test_lengths_are_expected_by_tenant_and_profile_not_from_max_tokens(gateway: Started):
    def expected_cost(profile: str) -> float:
        body = {**ASKED, "model": f"{MODEL}@{profile}", "max_tokens": 1000}
        [full] = [c for c in gateway.post("/v1/route", body).json()["candidates"] if c["variant"] == "full"]
        return full["cost_usd"]

    long = expected_cost("best")
    for _ in range(5):
        gateway.chat(model=f"{MODEL}@best", max_tokens=1000, headers={"x-gearbox-min-quality": "0.99"})
    assert expected_cost("best") < long / 10, "the engine's answers are short"
    assert expected_cost("cheap") < long / 10, "and nothing else is known of another profile's"


def test_a_prompt_that_was_answered_is_in_the_cache_and_one_that_was_not_is_not(gateway: Started):
    def cached(text: str) -> int:
        body = {**ASKED, "messages": [{"role": "user", "content": text}]}
        return gateway.post("/v1/route", body).json()["candidates"][0]["cached_tokens"]

    gateway.variants["full"].live.kv_tokens = 10_000
    gateway.variants["full"].live.update_replicas({gateway.engines["full"].url: 0})
    long, other = "a tale of sheep " * 100, "a tale of goats " * 100
    gateway.chat(long, model=f"{MODEL}:full")
    gateway.engines["full"].behaviour = "die"
    gateway.chat(other, model=f"{MODEL}:full")
    assert cached(long) > 200
    assert cached(other) == 0


def test_routing_changes_without_a_restart_and_what_was_learnt_stays(start_gateway: Start):
    gateway = start_gateway()
    assert gateway.chat().headers["x-gearbox-variant"] == "full"
    learnt = expected_ttft_ms(gateway)
    profiles = {**dict.fromkeys(gateway.config.profiles, Budget(objective="cost")), "picky": Budget()}
    gateway.app.reconfigure(gateway.config.model_copy(update={"profiles": profiles}))
    assert gateway.chat().headers["x-gearbox-variant"] == "distilled"
    assert expected_ttft_ms(gateway) == learnt
    assert gateway.chat(model=f"{MODEL}@picky").headers["x-gearbox-variant"] == "full"
    models = gateway.http.get("/v1/models").json()["data"]
    assert "picky" in models[0]["gearbox"]["profiles"]


def test_an_answer_is_expected_to_be_as_long_as_the_request_makes_it(gateway: Started):
    def cost(**fields: object) -> float:
        return gateway.post("/v1/route", {**ASKED, "max_tokens": 200, **fields}).json()["cost_usd"]

    for _ in range(5):
        gateway.chat(max_tokens=11, model=f"{MODEL}:full")
    usual, whole = cost(), cost(min_tokens=200)
    assert whole / usual > 5
    assert cost(ignore_eos=True) == whole
    assert cost(min_tokens=2) == usual
    assert cost(ignore_eos=True, max_tokens=None) > 5 * whole, "to the end of the context"
