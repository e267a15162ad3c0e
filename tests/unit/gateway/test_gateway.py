"""The gateway over real HTTP: its surface, its answers, and how a request chooses its budget."""

import asyncio
import re
import socket

import httpx
import openai
import pytest

from benchmarks.lib.sample_catalog import MODEL, make_live_variant
from serve.gateway.auth import hash_key
from tests.support.answers import EVERY_PATH, MESSAGES, chunks, error_of, gearbox_of, streamed_or_not, text_of
from tests.support.engine_stub import EngineStub
from tests.support.gateway_server import ENGINE_TOKEN, Start, Started

JSON = {"content-type": "application/json"}


class TestAnswers:
    @streamed_or_not
    def test_the_answer_is_the_engines_and_says_how_it_was_routed(self, gateway: Started, stream):
        response = gateway.chat(stream=stream)
        assert text_of(response, stream) == "You said: hello there"
        assert response.headers["x-gearbox-variant"] == "full"
        assert response.headers["x-gearbox-reason"] == "quality"
        assert float(response.headers["x-gearbox-predicted-ttft-ms"]) == 400
        assert float(response.headers["x-gearbox-predicted-e2e-ms"]) == 400 + 255 * 40
        assert float(response.headers["x-gearbox-quality"]) == 1
        assert 0 < float(response.headers["x-gearbox-overhead-ms"]) < 1000

    @streamed_or_not
    def test_the_gearbox_object_says_what_really_happened(self, gateway: Started, stream):
        facts = gearbox_of(gateway.chat(stream=stream), stream)
        assert (facts["variant"], facts["reason"], facts["quality"]) == ("full", "quality", 1)
        assert (facts["attempts"], facts["missed"]) == (1, None)
        assert 0 < facts["ttft_ms"] <= facts["e2e_ms"] < 5000
        assert facts["tpot_ms"] >= 0
        assert facts["cost_usd"] == pytest.approx(gateway.variants["full"].cost_usd(2, 6))

    def test_an_answer_of_one_token_has_a_time_to_first_token_too(self, gateway: Started, full: EngineStub):
        full.generation_time_ms = 0.0  # from the first to the last token, says vLLM, and they are the same
        facts = gateway.chat().json()["gearbox"]
        assert facts["ttft_ms"] == facts["e2e_ms"]
        assert gateway.sample("gearbox_ttft_seconds_count", variant="full") == 1

    def test_usage_ends_a_stream_for_clients_who_want_it(self, gateway: Started):
        *_, last = chunks(gateway.chat(stream=True, stream_options={"include_usage": True}))
        assert last["usage"] == {"prompt_tokens": 2, "total_tokens": 8, "completion_tokens": 6}
        assert last["choices"] == []
        assert "gearbox" in last

    def test_usage_on_every_chunk_delays_none(self, gateway: Started, full: EngineStub):
        """The chunk that came is sent on though its successor is not there yet."""
        full.behaviour = "hold"
        options = {"include_usage": True, "continuous_usage_stats": True}
        body = {"model": MODEL, "messages": MESSAGES, "stream": True, "stream_options": options}
        with gateway.http.stream("POST", "/v1/chat/completions", json=body) as response:
            seen = b""
            for part in response.iter_raw():
                seen += part
                if b" said" in seen:
                    break
            assert full.running == 1, "the engine is not done yet"
            full.let_go()
            assert b'"usage":{' in seen

    def test_no_usage_chunk_for_clients_who_do_not(self, gateway: Started):
        events = chunks(gateway.chat(stream=True))
        assert not any("usage" in event for event in events)
        assert events[-1]["choices"][0]["finish_reason"] == "stop"

    @streamed_or_not
    def test_completions_are_answered_too(self, gateway: Started, stream):
        body = {"model": MODEL, "prompt": "hello there", "stream": stream}
        response = gateway.post("/v1/completions", body)
        documents = chunks(response) if stream else [response.json()]
        assert "".join(d["choices"][0]["text"] for d in documents) == "You said: hello there"
        assert documents[-1]["gearbox"]["variant"] == "full"

    def test_the_engine_gets_the_body_the_models_own_name_and_the_platforms_token(self, gateway: Started):
        body = {"temperature": 0.5, "tools": [{"type": "function", "function": {"name": "f"}}], "seed": 7}
        gateway.chat(
            model=f"{MODEL}:int8", headers={"authorization": "Bearer client-key", "x-request-id": "abc"},
            budget={"ttft_ms": 9}, **body,
        )  # fmt: skip
        engine = gateway.engines["int8"]
        body["tools"][0]["function"]["strict"] = True
        (received,) = engine.requests
        assert received.pop("priority") > 0
        assert received == {"model": MODEL, "messages": MESSAGES, **body, "cache_salt": "anonymous"}
        headers = {name.lower(): value for name, value in engine.headers[0].items()}
        assert headers["authorization"] == f"Bearer {ENGINE_TOKEN}"
        assert headers["x-request-id"].startswith("abc-")
        assert "client-key" not in str(headers)

    def test_a_repeated_request_id_is_unique_at_the_engine(self, gateway: Started, full: EngineStub):
        for _ in range(2):
            gateway.chat(headers={"x-request-id": "same"})
        first, second = ({k.lower(): v for k, v in h.items()}["x-request-id"] for h in full.headers)
        assert first != second

    def test_a_stream_arrives_while_it_is_generated(self, gateway: Started, full: EngineStub):
        full.behaviour = "hold"
        body = {"model": MODEL, "messages": MESSAGES, "stream": True}
        with gateway.http.stream("POST", "/v1/chat/completions", json=body) as response:
            lines = response.iter_lines()
            seen = ""
            while "said" not in seen:
                seen += next(lines)
            assert full.running == 1, "the engine is not done yet"
            full.let_go()
            assert list(lines)[-2:] == ["data: [DONE]", ""]


class TestSequences:
    """Choices times prompts: the work of a request."""

    @streamed_or_not
    def test_every_choice_is_relayed_counted_and_paid(self, gateway: Started, stream):
        one, three = (gateway.chat(n=n, stream=stream) for n in (1, 3))
        texts: dict[int, str] = {}
        for document in chunks(three) if stream else [three.json()]:
            for choice in document["choices"]:
                part = choice["delta" if stream else "message"].get("content") or ""
                texts[choice["index"]] = texts.get(choice["index"], "") + part
        assert texts == dict.fromkeys(range(3), "You said: hello there")
        price, tokens = gateway.variants["full"].cost_usd, 6
        assert gearbox_of(one, stream)["cost_usd"] == pytest.approx(price(2, tokens))
        assert gearbox_of(three, stream)["cost_usd"] == pytest.approx(price(2, 3 * tokens))
        gateway.settle()

    def test_time_per_token_is_that_of_each_sequence(self, gateway: Started, full: EngineStub):
        full.generation_time_ms = 50.0
        assert gearbox_of(gateway.chat(n=4), False)["tpot_ms"] == pytest.approx(10, rel=0.01), "6 tokens each, 5 steps"

    def test_they_count_in_the_load(self, gateway: Started, full: EngineStub):
        full.behaviour = "hold"
        body = {"model": MODEL, "prompt": ["a", "b"], "n": 2, "stream": True}
        with gateway.http.stream("POST", "/v1/completions", json=body):
            assert gateway.variants["full"].live.in_flight == 4
            full.let_go()
        gateway.settle()

    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("chat/completions", {"messages": MESSAGES, "n": 8}),
            ("completions", {"prompt": "hello there", "n": 8}),
            ("completions", {"prompt": ["hello", "there"] * 4}),
            ("completions", {"prompt": [[1], [2]], "n": 4}),
        ],
    )
    def test_a_budget_is_for_all_of_them(self, gateway: Started, path, body):
        request = {"model": f"{MODEL}@cheap", "max_tokens": 20, **body}
        shown = gateway.post("/v1/route", request).json()
        assert shown["sequences"] == 8, shown
        single = {**request, "n": 1}
        single["prompt" if "prompt" in body else "messages"] = "hello there" if "prompt" in body else MESSAGES
        assert shown["cost_usd"] > 6 * gateway.post("/v1/route", single).json()["cost_usd"]
        limit = {"max_cost": shown["cost_usd"] / 2, "on_no_candidate": "reject"}
        assert error_of(gateway.post(f"/v1/{path}", {**request, "budget": limit}), 422)["code"] == "impossible_budget"
        assert gateway.engine_calls() == {}

    @pytest.mark.parametrize(
        ("path", "body", "param"),
        [
            ("chat/completions", {"messages": MESSAGES, "n": 1_000_000}, "n"),
            ("completions", {"prompt": ["a"] * 1000}, "prompt"),
        ],
    )
    def test_more_than_can_be_admitted_is_400(self, gateway: Started, path, body, param):
        for name in (f"/v1/{path}", "/v1/route"):
            error = error_of(gateway.post(name, {"model": MODEL, **body}), 400)
            assert (error["code"], error["param"]) == ("too_many_sequences", param)


class TestNamedModel:
    """The answer's `model` is the requested one."""

    @pytest.mark.parametrize("name", [MODEL, f"{MODEL}@fast", f"{MODEL}:int8"])
    @pytest.mark.parametrize(
        "options", [None, {"include_usage": True}, {"include_usage": True, "continuous_usage_stats": True}]
    )
    def test_in_every_chunk(self, gateway: Started, name, options):
        response = gateway.chat(f'"model":"{MODEL}"', model=name, stream=True, stream_options=options)
        assert {chunk["model"] for chunk in chunks(response)} == {name}
        assert text_of(response, True) == f'You said: "model":"{MODEL}"', "what only looks like it stays"

    @pytest.mark.parametrize("name", [MODEL, f"{MODEL}@fast", f"{MODEL}:int8"])
    def test_in_the_whole_answer(self, gateway: Started, name):
        response = gateway.chat(f'"model":"{MODEL}"', model=name)
        assert response.json()["model"] == name
        assert text_of(response, False) == f'You said: "model":"{MODEL}"'


class TestBudgets:
    def test_headers_body_profile_and_pin_choose_the_variant(self, gateway: Started):
        def variant(headers: dict[str, str] | None = None, **body) -> str:
            # a dry run: the predictions learn nothing from it
            request = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 11, **body}
            return gateway.post("/v1/route", request, headers).json()["variant"]

        assert variant() == "full"
        assert variant(model=f"{MODEL}@cheap") == "distilled"
        assert variant(model=f"{MODEL}@balanced") == "int8"
        assert variant(model=f"{MODEL}:int8") == "int8"
        assert variant(budget={"ttft_ms": 250}) == "int8"
        assert variant(budget={"ttft_ms": 250}, headers={"x-gearbox-slo-ttft-ms": "150"}) == "distilled"
        assert variant(headers={"x-llm-d-slo-ttft-ms": "250"}) == "int8"
        assert variant(model=f"{MODEL}@cheap", headers={"x-gearbox-min-quality": "0.9"}) == "int8"
        answered = gateway.chat(model=f"{MODEL}@cheap", headers={"x-gearbox-min-quality": "0.9"}, max_tokens=11)
        assert answered.headers["x-gearbox-variant"] == "int8"

    def test_a_named_profile_replaces_the_keys_profile_whole(self, start_gateway: Start):
        key = {"sha256": hash_key("gbx-1"), "tenant": "acme", "budget": "strict"}
        profiles = {"strict": {"min_quality": 0.9, "objective": "cost"}, "loose": {"objective": "cost"}}
        gateway = start_gateway(access={"keys": [key]}, profiles=profiles)
        headers = {"authorization": "Bearer gbx-1"}
        assert gateway.chat(headers=headers).headers["x-gearbox-variant"] == "int8"
        loose = gateway.chat(headers=headers, model=f"{MODEL}@loose")
        assert loose.headers["x-gearbox-variant"] == "distilled", "the key's quality floor is gone"

    def test_the_nearest_miss_says_what_it_missed(self, gateway: Started):
        response = gateway.chat(budget={"ttft_ms": 90})
        assert response.headers["x-gearbox-reason"] == "nearest_miss"
        assert re.fullmatch(r"predicted ttft 100 ms > (90|8\d\.\d+) ms", response.json()["gearbox"]["missed"])

    def test_an_impossible_budget_is_422_when_it_asks_to_be_rejected(self, gateway: Started):
        response = gateway.chat(budget={"ttft_ms": 90}, headers={"x-gearbox-on-no-candidate": "reject"})
        assert error_of(response, 422)["code"] == "impossible_budget"
        assert gateway.engine_calls() == {}

    @pytest.mark.parametrize("header", ["x-gearbox-slo-ttft-ms", "x-gearbox-max-cost", "x-llm-d-slo-tpot-ms"])
    def test_a_bad_header_is_400_by_name(self, gateway: Started, header):
        assert error_of(gateway.chat(headers={header: "nan"}), 400)["param"] == header

    def test_a_bad_body_field_is_400_by_name(self, gateway: Started):
        assert error_of(gateway.chat(budget={"speed": 1}), 400)["param"] == "budget.speed"
        assert error_of(gateway.chat(budget="fast"), 400)["param"] == "budget"

    @pytest.mark.parametrize(
        ("model", "code", "says"),
        [
            ("gpt-4", "model_not_found", MODEL),
            (f"{MODEL}@turbo", "profile_not_found", "balanced"),
            (f"{MODEL}@", "profile_not_found", "balanced"),
            (f"{MODEL}:int4", "variant_not_found", "distilled"),
            (f"{MODEL}:", "variant_not_found", "distilled"),
        ],
    )
    def test_an_unknown_name_is_404_with_those_there_are(self, gateway: Started, model, code, says):
        error = error_of(gateway.chat(model=model), 404)
        assert (error["code"], error["param"]) == (code, "model")
        assert says in error["message"]


class TestSurface:
    @pytest.mark.parametrize("path", ["/", "/v1", "/v1/chat", "/v1/chat/completions/", "/metrics", "/v1/audio/speech"])
    @pytest.mark.parametrize("method", ["GET", "POST"])
    def test_an_unknown_path_is_404(self, gateway: Started, path, method):
        assert error_of(gateway.http.request(method, path), 404)["code"] == "not_found"

    @pytest.mark.parametrize(("path", "method"), EVERY_PATH.items())
    def test_a_wrong_method_is_405_with_the_right_one(self, gateway: Started, path, method):
        for wrong in {"GET", "POST", "PUT", "DELETE"} - {method}:
            response = gateway.http.request(wrong, path)
            assert error_of(response, 405)["code"] == "method_not_allowed"
            assert response.headers["allow"].split(", ")[0] == method

    @pytest.mark.parametrize(
        "raw",
        [b"", b"{", b"hello", b"\xff\xfe", b"[]", b"null", b'{"model": 5}', b'{"model": "smollm2-135m"}', b"[" * 9999],
    )
    @pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/route"])
    def test_a_malformed_body_is_400(self, gateway: Started, path, raw):
        error_of(gateway.http.post(path, content=raw, headers=JSON), 400)
        assert gateway.engine_calls() == {}

    def test_a_body_over_the_limit_is_413_by_its_announced_length(self, start_gateway: Start):
        gateway = start_gateway(server={"max_body_bytes": 2048})
        response = gateway.http.post("/v1/chat/completions", content=b"x" * 2049, headers=JSON)
        assert error_of(response, 413)["code"] == "body_too_large"
        assert gateway.chat("x" * 1000).status_code == 200

    def test_an_announced_length_over_the_limit_is_refused_before_the_body_comes(self, gateway: Started):
        with socket.create_connection(gateway.http.base_url.netloc.decode().split(":"), timeout=5) as connection:
            connection.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n"
                b"content-type: application/json\r\ncontent-length: 999999999\r\n\r\n"
            )
            assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")

    def test_a_body_over_the_limit_is_413_when_its_length_was_not_announced(self, start_gateway: Start):
        gateway = start_gateway(server={"max_body_bytes": 2048})
        response = gateway.http.post("/v1/chat/completions", content=(b"x" * 512 for _ in range(8)), headers=JSON)
        assert error_of(response, 413)["code"] == "body_too_large"

    def test_a_huge_body_is_413_and_the_connection_does_not_hang(self, gateway: Started):
        response = gateway.http.post("/v1/chat/completions", content=b"x" * (8 << 20), headers=JSON)
        assert error_of(response, 413)["code"] == "body_too_large"

    def test_models_lists_the_model_its_profiles_and_its_variants(self, gateway: Started):
        listed = gateway.http.get("/v1/models").json()
        ids = [model["id"] for model in listed["data"]]
        assert listed["object"] == "list"
        assert ids[0] == MODEL
        assert set(ids[1:]) == {
            *(f"{MODEL}@{name}" for name in ("best", "balanced", "fast", "cheap")),
            *(f"{MODEL}:{name}" for name in ("full", "int8", "distilled")),
        }
        for model in listed["data"]:
            assert (model["object"], model["owned_by"]) == ("model", "gearbox")
            assert gateway.http.get(f"/v1/models/{model['id']}").json() == model
        assert error_of(gateway.http.get("/v1/models/gpt-4"), 404)["code"] == "model_not_found"

    def test_every_listed_model_answers_requests(self, gateway: Started):
        for model in gateway.http.get("/v1/models").json()["data"]:
            assert gateway.chat(model=model["id"]).status_code == 200

    def test_variants_show_cards_and_live_state(self, gateway: Started):
        gateway.variants["int8"].live.replicas = 0
        gateway.variants["full"].live.waiting = 3
        listed = {row["name"]: row for row in gateway.http.get("/v1/variants").json()["data"]}
        assert listed["full"]["health"] == "healthy"
        assert listed["full"]["waiting"] == 3
        assert listed["int8"]["health"] == "unavailable"
        assert listed["distilled"]["card"]["quality"]["quality"] == 0.8

    def test_route_decides_without_generating_or_counting(self, gateway: Started):
        body = {"model": MODEL, "messages": MESSAGES, "budget": {"ttft_ms": 250}, "max_tokens": 11}
        decision = gateway.post("/v1/route", body).json()
        assert (decision["variant"], decision["reason"]) == ("int8", "quality")
        assert decision["budget"]["ttft_ms"] == 250
        assert [candidate["variant"] for candidate in decision["candidates"]] == ["full", "int8", "distilled"]
        assert gateway.engine_calls() == {}
        assert not any("gearbox_requests_total" in name for name, _ in gateway.series())
        assert (
            gateway.post("/v1/route", {"model": MODEL, "prompt": "a " * 9, "max_tokens": 1}).json()["variant"] == "full"
        )

    def test_route_decides_as_a_real_request_would(self, gateway: Started):
        for budget in (
            {},
            {"ttft_ms": 250},
            {"objective": "cost"},
            {"ttft_ms": 1},
            {"min_quality": 0.9, "objective": "cost"},
        ):
            dry = gateway.post("/v1/route", {"model": MODEL, "messages": MESSAGES, "budget": budget}).json()
            real = gateway.chat(budget=budget)
            assert dry["variant"] == real.headers["x-gearbox-variant"]
            assert dry["reason"] == real.headers["x-gearbox-reason"]

    def test_ready_as_soon_as_one_variant_can_answer(self, gateway: Started):
        assert gateway.http.get("/healthz").status_code == 200
        assert gateway.http.get("/readyz").json()["variants"] == ["full", "int8", "distilled"]
        for name in ("full", "int8"):
            gateway.variants[name].live.replicas = 0
        assert gateway.http.get("/readyz").json()["variants"] == ["distilled"]
        gateway.variants["distilled"].live.replicas = 0
        response = gateway.http.get("/readyz")
        error_of(response, 503)
        assert "retry-after" in response.headers
        assert gateway.http.get("/healthz").status_code == 200

    def test_a_variant_scaled_to_zero_is_ready(self, start_gateway: Start):
        gateway = start_gateway(variants=[make_live_variant("full", min_replicas=0, replicas=0)])
        assert gateway.http.get("/readyz").status_code == 200
        assert gateway.chat().status_code == 200

    @streamed_or_not
    def test_nothing_healthy_is_503(self, gateway: Started, stream):
        for variant in gateway.variants.values():
            variant.live.replicas = 0
        response = gateway.chat(stream=stream)
        assert error_of(response, 503)["code"] == "no_healthy_variant"
        assert int(response.headers["retry-after"]) >= 1

    @streamed_or_not
    def test_everything_full_is_429(self, start_gateway: Start, stream):
        gateway = start_gateway(variants=[make_live_variant("full", max_running=1, max_waiting=0, load=1)])
        response = gateway.chat(stream=stream)
        assert error_of(response, 429)["code"] == "overloaded"
        assert int(response.headers["retry-after"]) >= 1
        gateway.variants["full"].live.in_flight = 0

    def test_while_the_first_variant_is_still_being_built_every_answer_is_in_shape(self, start_gateway: Start):
        """`gearbox up` starts the gateway before there is anything to serve."""
        gateway = start_gateway(variants=[])
        assert error_of(gateway.chat(), 503)["code"] == "no_healthy_variant"
        assert error_of(gateway.chat(stream=True), 503)
        assert error_of(gateway.post("/v1/route", {"model": MODEL, "messages": MESSAGES}), 503)
        assert error_of(gateway.http.get("/readyz"), 503)
        assert gateway.http.get("/v1/variants").json()["data"] == []
        assert gateway.http.get("/v1/models").json()["data"][0]["id"] == MODEL

    def test_a_configured_variant_that_is_not_up_yet_is_503_not_404(self, start_gateway: Start):
        """Its name is right and will answer in a while; 404 would tell the client to give up."""
        gateway = start_gateway(variants=[make_live_variant("full")])
        assert error_of(gateway.chat(model=f"{MODEL}:int8"), 503)
        assert error_of(gateway.chat(model=f"{MODEL}:int4"), 404)


class TestClients:
    def test_the_official_client(self, gateway: Started):
        raw = gateway.sdk().chat.completions.with_raw_response.create(model=MODEL, messages=MESSAGES)
        answer = raw.parse()
        assert answer.choices[0].message.content == "You said: hello there"
        assert answer.usage.total_tokens == 8
        assert answer.model_extra["gearbox"]["variant"] == raw.headers["x-gearbox-variant"] == "full"

    def test_the_official_client_streaming(self, gateway: Started):
        stream = gateway.sdk().chat.completions.create(
            model=f"{MODEL}@fast", messages=MESSAGES, stream=True, stream_options={"include_usage": True},
            extra_body={"budget": {"min_quality": 0.9}},
        )  # fmt: skip
        seen = list(stream)
        assert "".join(chunk.choices[0].delta.content for chunk in seen if chunk.choices) == "You said: hello there"
        assert seen[-1].usage.completion_tokens == 6
        assert seen[-1].model_extra["gearbox"]["variant"] == "int8"

    def test_the_official_client_lists_models_and_completes(self, gateway: Started):
        assert gateway.sdk().models.list().data[0].id == MODEL
        assert gateway.sdk().models.retrieve(f"{MODEL}:int8").id == f"{MODEL}:int8"
        answer = gateway.sdk().completions.create(model=MODEL, prompt="hello there")
        assert answer.choices[0].text == "You said: hello there"

    def test_the_official_client_raises_what_belongs_to_the_status(self, gateway: Started):
        create = gateway.sdk().chat.completions.create
        with pytest.raises(openai.NotFoundError):
            create(model="gpt-4", messages=MESSAGES)
        with pytest.raises(openai.BadRequestError) as caught:
            create(model=MODEL, messages=MESSAGES, extra_headers={"x-gearbox-max-cost": "free"})
        assert caught.value.param == "x-gearbox-max-cost"
        with pytest.raises(openai.UnprocessableEntityError):
            create(model=MODEL, messages=MESSAGES, extra_body={"budget": {"ttft_ms": 1, "on_no_candidate": "reject"}})

    async def test_twenty_concurrent_clients_get_their_own_answers(self, gateway: Started):
        for engine in gateway.engines.values():
            engine.behaviour = "slow"
        for variant in gateway.variants.values():
            assert variant.max_running + variant.max_waiting == 8, "so that they spread over the variants"
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(trust_env=False, verify=False, limits=limits) as http:
            client = openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="x", http_client=http, max_retries=0)

            async def ask(i: int) -> str:
                messages = [{"role": "user", "content": f"number {i}"}]
                if i % 2:
                    answer = await client.chat.completions.create(model=MODEL, messages=messages)
                    return answer.choices[0].message.content
                stream = await client.chat.completions.create(model=MODEL, messages=messages, stream=True)
                return "".join([chunk.choices[0].delta.content async for chunk in stream])

            answers = await asyncio.gather(*(ask(i) for i in range(20)))
        assert answers == [f"You said: number {i}" for i in range(20)]
        assert sum(gateway.engine_calls().values()) == 20
        assert len(gateway.engine_calls()) == 3, "what was in flight at one variant sent others elsewhere"
