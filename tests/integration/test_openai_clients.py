"""The real OpenAI SDK against the real platform."""

import asyncio
import json
import time

import openai
import pytest

from tests.support.platform import Platform

pytestmark = pytest.mark.platform
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
VARIANTS = ("full", "int8", "distilled")


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_answers_and_says_what_it_did(platform: Platform, variant: str) -> None:
    raw = platform.client().chat.completions.with_raw_response.create(
        model=f"{platform.model}:{variant}", messages=QUESTION, max_tokens=8, temperature=0,
        extra_body={"min_tokens": 8},
    )  # fmt: skip
    answer = raw.parse()
    assert raw.headers["x-gearbox-variant"] == variant
    assert raw.headers["x-gearbox-reason"] == "pinned"
    assert raw.headers["x-request-id"]
    for header in ("predicted-ttft-ms", "predicted-e2e-ms", "quality", "overhead-ms"):
        assert float(raw.headers[f"x-gearbox-{header}"]) > 0
    facts = answer.model_extra["gearbox"]
    assert facts["variant"] == variant and facts["attempts"] == 1
    assert 0 < facts["ttft_ms"] <= facts["e2e_ms"] and facts["cost_usd"] > 0
    assert answer.usage.completion_tokens == 8 and answer.choices[0].message.content


def test_a_stream_carries_tokens_as_they_come_and_the_facts_at_its_end(platform: Platform) -> None:
    chunks = list(
        platform.client().chat.completions.create(
            model=platform.model,
            messages=QUESTION,
            max_tokens=12,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"min_tokens": 12},
        )
    )
    assert len([chunk for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]) > 3
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 12
    assert chunks[-1].model_extra["gearbox"]["tpot_ms"] > 0


def test_a_stream_without_usage_has_no_extra_chunk(platform: Platform) -> None:
    chunks = list(
        platform.client().chat.completions.create(model=platform.model, messages=QUESTION, max_tokens=4, stream=True)
    )
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason and chunks[-1].model_extra["gearbox"]["variant"] in VARIANTS


def test_the_budget_moves_the_request(platform: Platform) -> None:
    """Which variant is fastest or cheapest depends on the hardware and on what was just measured.

    So the dry runs right before and right after a request say what to expect of it; where they differ, it is sent again.
    """
    client = platform.client()

    def answered(model: str, **extra: object) -> tuple[str, str]:
        raw = client.chat.completions.with_raw_response.create(model=model, messages=QUESTION, max_tokens=2, **extra)
        return raw.headers["x-gearbox-variant"], raw.headers["x-gearbox-reason"]

    def taken(model: str, **extra: object) -> tuple[str, str]:
        while (took := answered(model, **extra))[1] == "explore":  # one in a hundred
            pass
        return took

    def least(key: str) -> str:
        time.sleep(1.5)  # the engines' counts are polled every half second
        with platform.http() as http:
            body = {"model": f"{platform.model}@fast", "messages": QUESTION, "max_tokens": 2}
            return min(http.post("/v1/route", json=body).json()["candidates"], key=lambda c: c[key])["variant"]

    def takes_the_least(key: str, reason: str, model: str, **extra: object) -> None:
        before = least(key)
        for _ in range(20):
            took, after = answered(model, **extra), least(key)
            if before == after and took[1] != "explore":
                assert took == (after, reason)
                return
            before = after
        pytest.fail(f"the variant with the least {key} was another one before and after each of twenty requests")

    assert taken(f"{platform.model}@best") == ("full", "quality")
    assert taken(platform.model, extra_body={"budget": {"objective": "quality"}}) == ("full", "quality")
    takes_the_least("predicted_e2e_ms", "latency", f"{platform.model}@fast")
    takes_the_least("cost_usd", "cost", f"{platform.model}@cheap")
    headers = {"x-gearbox-objective": "latency", "x-gearbox-min-quality": "0"}
    over_body = {"extra_body": {"budget": {"objective": "quality"}}, "extra_headers": headers}
    takes_the_least("predicted_e2e_ms", "latency", platform.model, **over_body)
    limit = {"budget": {"min_quality": 0.9, "objective": "cost"}}
    assert taken(platform.model, extra_body=limit)[0] in ("full", "int8")


def test_the_dry_run_explains_every_candidate(platform: Platform) -> None:
    with platform.http() as http:
        body = {"model": f"{platform.model}@balanced", "messages": QUESTION}
        decision = http.post("/v1/route", json=body).json()
    assert {candidate["variant"] for candidate in decision["candidates"]} == set(VARIANTS)
    excluded = {c["variant"]: c["ruled_out"] for c in decision["candidates"] if c["ruled_out"]}
    assert excluded == {"distilled": "min_quality"}


def test_a_prompt_that_was_read_before_is_predicted_to_start_sooner_but_only_for_its_tenant(platform: Platform) -> None:
    """What the engine says that its cache served is what the gateway takes to be there."""
    story = [{"role": "user", "content": "".join(f"Once upon a time, {i} sheep lived on a hill. " for i in range(80))}]
    body = {"model": f"{platform.model}:full", "messages": story, "max_tokens": 2}

    def answered(tenant: str) -> tuple[float, int, float]:
        """Tokens the engine found in its cache, those the gateway expected there, and the predicted TTFT."""
        with platform.http(tenant) as http:
            route = http.post("/v1/route", json=body).json()
            before = platform.engine_metric("full", "vllm:prefix_cache_hits_total")
            assert http.post("/v1/chat/completions", json=body).status_code == 200
            hits = platform.engine_metric("full", "vllm:prefix_cache_hits_total") - before
        return hits, route["candidates"][0]["cached_tokens"], route["predicted_ttft_ms"]

    time.sleep(1)  # the size of the cache is polled every half second
    _, _, cold = answered("alice")
    hits, expected, warm = answered("alice")
    assert expected > 500 and hits > 500 and abs(hits - expected) < 300
    assert warm < 0.7 * cold
    hits, expected, _ = answered("bob")
    assert hits == expected == 0


def test_completions_with_logprobs_and_several_prompts(platform: Platform) -> None:
    answer = platform.client().completions.create(
        model=platform.model, prompt=["One, two,", "Red, green,"], max_tokens=3, logprobs=2, temperature=0
    )
    assert len(answer.choices) == 2 and len(answer.choices[0].logprobs.top_logprobs[0]) >= 2
    chunks = list(
        platform.client().completions.create(
            model=platform.model, prompt="One,", max_tokens=3, stream=True, extra_body={"min_tokens": 3}
        )
    )
    assert "".join(chunk.choices[0].text for chunk in chunks)


def test_structured_output_follows_its_schema(platform: Platform) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "people": {"type": "integer", "maximum": 99}},
        "required": ["city", "people"],
        "additionalProperties": False,
    }
    answer = platform.client().chat.completions.create(
        model=platform.model,
        messages=[{"role": "user", "content": "Describe Paris."}],
        max_tokens=60,
        temperature=0,
        response_format={"type": "json_schema", "json_schema": {"name": "city", "schema": schema}},
    )
    assert set(json.loads(answer.choices[0].message.content)) == {"city", "people"}


def test_a_forced_tool_call_comes_back_as_one(platform: Platform) -> None:
    parameters = {
        "type": "object",
        "properties": {"days": {"type": "integer", "minimum": 1, "maximum": 7}},
        "required": ["days"],
        "additionalProperties": False,
    }
    function = {"name": "forecast", "description": "Weather.", "strict": True, "parameters": parameters}
    tool = {"type": "function", "function": function}
    answer = platform.client().chat.completions.create(
        model=platform.model,
        messages=[{"role": "user", "content": "Weather for three days?"}],
        tools=[tool],
        tool_choice={"type": "function", "function": {"name": "forecast"}},
        temperature=0,
        max_tokens=60,
    )
    call = answer.choices[0].message.tool_calls[0].function
    assert call.name == "forecast" and 1 <= json.loads(call.arguments)["days"] <= 7


async def test_twenty_clients_at_once_each_get_their_own_answer(platform: Platform) -> None:
    async with platform.async_client() as client:

        async def ask(number: int) -> str:
            stream = await client.completions.create(
                model=f"{platform.model}:full", prompt=" ".join([str(number)] * 20),
                max_tokens=6, temperature=0, stream=True,
            )  # fmt: skip
            return "".join([chunk.choices[0].text async for chunk in stream])

        numbers = range(100, 120)
        answers = await asyncio.gather(*(ask(number) for number in numbers))
    assert sum(str(number) in answer for number, answer in zip(numbers, answers, strict=True)) >= 18
    others = [n for n, answer in zip(numbers, answers, strict=True) if any(str(o) in answer for o in numbers if o != n)]
    assert len(others) <= 2  # the model counts on now and then; it never sees another request


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        ({"model": "nope"}, 404, "model_not_found"),
        ({"model": "smollm2-135m:nope"}, 404, "variant_not_found"),
        ({"model": "smollm2-135m@nope"}, 404, "profile_not_found"),
        ({"messages": []}, 400, "missing_messages"),
        ({"messages": "hello"}, 400, "missing_messages"),
        ({"temperature": -1}, 400, "invalid_request"),
        ({"max_tokens": 100_000}, 400, "context_length_exceeded"),
        ({"messages": [{"role": "user", "content": "word " * 9000}]}, 400, "context_length_exceeded"),
        ({"messages": [{"role": "user", "content": "a1 " * 1900}]}, 400, "context_length_exceeded"),
        ({"extra_body": {"budget": {"e2e_ms": 1, "on_no_candidate": "reject"}}}, 422, "impossible_budget"),
        ({"extra_body": {"budget": {"speed": 1}}}, 400, "invalid_budget"),
        ({"extra_headers": {"x-gearbox-min-quality": "much"}}, 400, "invalid_budget"),
    ],
)
def test_a_bad_request_gets_its_reason(platform: Platform, request_: dict, status: int, code: str) -> None:
    arguments = {"model": platform.model, "messages": QUESTION, "max_tokens": 4, **request_}
    with pytest.raises(openai.APIStatusError) as caught:
        platform.client().chat.completions.create(**arguments)
    assert caught.value.status_code == status
    assert set(caught.value.body) == {"message", "type", "param", "code"} and caught.value.body["code"] == code


def test_only_the_engines_own_count_refuses_a_prompt(platform: Platform) -> None:
    """9,000 times "=" are about 140 tokens; by its length it would be over 2,000."""
    answer = platform.client().chat.completions.create(
        model=platform.model, messages=[{"role": "user", "content": "=" * 9000}], max_tokens=2
    )
    assert answer.usage is not None and answer.usage.prompt_tokens < 500


def test_malformed_empty_and_oversized_bodies(platform: Platform) -> None:
    with platform.http() as http:
        for content, status in ((b"{", 400), (b"", 400), (b"[]", 400), (b"x" * (5 << 20), 413)):
            response = http.post("/v1/chat/completions", content=content, headers={"content-type": "application/json"})
            assert response.status_code == status and set(response.json()["error"]) == {
                "message",
                "type",
                "param",
                "code",
            }
        assert http.get("/v1/nothing").status_code == 404
        assert http.get("/v1/chat/completions").status_code == 405


def test_models_lists_every_name_a_client_may_use(platform: Platform) -> None:
    names = {model.id for model in platform.client().models.list()}
    assert {platform.model, f"{platform.model}@fast", f"{platform.model}:int8"} <= names
    assert platform.client().models.retrieve(f"{platform.model}:int8").id == f"{platform.model}:int8"


def test_keys_decide_who_may_and_how_much(platform: Platform) -> None:
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{platform.url}/v1", api_key="gbx-wrong", max_retries=0).models.list()
    bob = platform.client("bob").chat.completions.with_raw_response.create(
        model=platform.model, messages=QUESTION, max_tokens=2
    )
    assert bob.headers["x-gearbox-reason"] in ("cost", "explore")
    limited = platform.client("limited")
    with pytest.raises(openai.RateLimitError) as caught:
        for _ in range(7):  # twice as many as the limit, and one: a minute may end in between
            limited.completions.create(model=platform.model, prompt="hi", max_tokens=1)
    assert int(caught.value.response.headers["retry-after"]) >= 1
    assert caught.value.body["code"] == "requests_per_minute"
    thrifty = platform.client("thrifty")
    with pytest.raises(openai.RateLimitError) as caught:
        for _ in range(3):
            thrifty.chat.completions.create(model=platform.model, messages=QUESTION, max_tokens=30)
    assert caught.value.body["code"] == "tokens_per_minute"
