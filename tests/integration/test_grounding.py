"""Grounded answers of the real model: compared with ungrounded ones, streamed, cancelled, within a budget."""

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.answers import chunks, error_of, gearbox_of, text_of
from tests.support.platform import KEYS, Platform
from tests.support.waiting import eventually

pytestmark = pytest.mark.platform
VARIANTS = ("full", "int8", "distilled")
MINISTER = "Who is the British Prime Minister?"
DIVISION = "What is 40366 / 439?"
DUNETREE = "What is a Martian Dunetree?"
TITLE = "The Government of the United Kingdom"
IN_2022 = f"# {TITLE}\n\nLiz Truss is the Prime Minister of the United Kingdom. She took office in September 2022."
EDITED = f"# {TITLE}\n\nRishi Sunak is the Prime Minister of the United Kingdom. He took office in October 2022."
NEWER = f"# {TITLE}\n\nKeir Starmer is the Prime Minister of the United Kingdom. He took office in July 2024."

ROOM = 160  # tokens: for an answer and for a quotation after it, which must not go over the request's limit


def put(http: httpx.Client, collection: str, source: str, content: str, **meta: object) -> str:
    body = {"collection": collection, "source": source, "content": content, "meta": meta}
    response = http.post("/v1/documents", json=body)
    assert response.status_code == 200, response.text
    return response.json()["status"]


def ask(http: httpx.Client, question: str, retrieval: object, variant: str = "full", **more: Any) -> httpx.Response:
    body = {
        "model": f"smollm2-135m:{variant}", "messages": [{"role": "user", "content": question}], "max_tokens": ROOM,
        "temperature": 0, "retrieval": retrieval, **more,
    }  # fmt: skip
    return http.post("/v1/chat/completions", json=body)


@pytest.fixture(scope="module")
def http(platform: Platform) -> Iterator[httpx.Client]:
    with platform.http() as http:
        yield http


@pytest.fixture(scope="module")
def harbour(http: httpx.Client) -> str:
    """A collection with facts that no model knows."""
    http.delete("/v1/documents", params={"collection": "grounding-harbour"})
    put(
        http,
        "grounding-harbour",
        "norfell.md",
        "# Norfell\n\nThe harbour of Norfell was designed by Ada Quist in 1931.",
    )
    put(
        http,
        "grounding-harbour",
        "ostrava.md",
        "# Tidwick\n\nThe lighthouse of Tidwick was painted by Bruno Tarn in 1954.",
    )
    return "grounding-harbour"


TIGHT = {"budget": {"ttft_ms": 1}}  # less than any search takes
HARBOUR = "Who designed the harbour of Norfell?"


class TestWhatTheModelAloneGetsWrong:
    def test_it_knows_no_prime_minister(self, http: httpx.Client) -> None:
        said = text_of(ask(http, MINISTER, False), False)
        assert not any(name in said for name in ("Truss", "Sunak", "Starmer")), said

    def test_it_divides_wrongly(self, http: httpx.Client) -> None:
        assert "91.9" not in text_of(ask(http, DIVISION, False), False)

    def test_it_tells_of_a_tree_that_is_not(self, http: httpx.Client) -> None:
        said = text_of(ask(http, DUNETREE, False), False)
        assert re.search(r"Dunetree (is|was|refers|grows)\b", said), said


class TestTheClassicFailures:
    def test_the_prime_minister_is_whoever_the_documents_say_last(self, http: httpx.Client) -> None:
        http.delete("/v1/documents", params={"collection": "grounding-uk"})

        def check(name: str, source: str) -> None:
            for variant in VARIANTS:
                response = ask(http, MINISTER, {"collection": "grounding-uk"}, variant)
                facts = gearbox_of(response, False)
                assert facts["variant"] == variant and facts["retrieval"]["outcome"] == "used"
                if variant == "distilled" and name not in text_of(response, False):
                    continue  # it answers 85% of such questions right (docs/design/grounding.md), and not every build of it this one
                assert name in text_of(response, False), (variant, response.text)
                assert [cited["source"] for cited in facts["citations"]] == [source]
                assert name in facts["citations"][0]["quote"]
                claims = [one["supported"] for one in facts["sentences"] if one["supported"] is not None]
                assert facts["grounded"] is (bool(claims) and all(claims))
                assert facts["quoted"] is None or facts["grounded"] is False

        assert put(http, "grounding-uk", "uk.md", IN_2022, date="2022-09-10") == "added"
        check("Liz Truss", "uk.md")
        assert put(http, "grounding-uk", "uk.md", EDITED, date="2022-10-26") == "replaced"
        check("Rishi Sunak", "uk.md")
        assert put(http, "grounding-uk", "news.md", NEWER, date="2024-07-06") == "added"
        check("Keir Starmer", "news.md")

        until = {"field": "meta.date", "operator": "<", "value": "2023-01-01"}
        before = ask(http, MINISTER, {"collection": "grounding-uk", "filters": until})
        assert "Rishi Sunak" in text_of(before, False)

    @pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
    def test_a_division_is_computed(self, http: httpx.Client, harbour: str, stream: bool) -> None:
        response = ask(http, DIVISION, {"collection": harbour}, stream=stream)
        facts = gearbox_of(response, stream)
        assert "91.949886104784" in text_of(response, stream)
        assert (facts["variant"], facts["reason"], facts["grounded"]) == (None, "computed", True)
        assert facts["tools"] == [
            {"name": "calculator", "input": {"expression": "40366 / 439"}, "output": "91.949886104784"}
        ]
        assert response.headers["x-gearbox-variant"] == "none" and response.headers["x-gearbox-reason"] == "computed"

    @pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
    def test_what_no_document_tells_of_is_not_known(self, http: httpx.Client, harbour: str, stream: bool) -> None:
        response = ask(http, DUNETREE, {"collection": harbour}, stream=stream)
        facts = gearbox_of(response, stream)
        assert text_of(response, stream) == "I don't know: the documents I have do not say."
        assert (facts["variant"], facts["reason"], facts["grounded"]) == (None, "abstained", False)
        assert facts["citations"] == [] and facts["retrieval"]["support"] < 0.5
        assert response.headers["x-gearbox-retrieval"] == "abstained"

    def test_a_collection_that_is_not_there_is_an_error(self, http: httpx.Client) -> None:
        named = ask(http, HARBOUR, {"collection": "grounding-nothing"})
        assert error_of(named, 404)["code"] == "collection_not_found"
        named = ask(http, HARBOUR, None, model="smollm2-135m+grounding-nothing")
        assert error_of(named, 404)["param"] == "model"

    @pytest.mark.parametrize("content", [["words"], [3], [{"type": "text", "text": 3}], None, 3])
    def test_a_message_that_is_none_is_refused_by_whom_it_concerns(
        self, http: httpx.Client, harbour: str, content: object
    ) -> None:
        messages = [{"role": "user", "content": content}]
        error_of(ask(http, "", {"collection": harbour}, messages=messages, max_tokens=2), 400)


class TestStreams:
    @pytest.mark.parametrize("variant", VARIANTS)
    def test_the_openai_sdk_streams_a_grounded_answer(self, platform: Platform, harbour: str, variant: str) -> None:
        raw = platform.client().chat.completions.with_raw_response.create(
            model=f"{platform.model}:{variant}", messages=[{"role": "user", "content": HARBOUR}], max_tokens=ROOM,
            temperature=0, stream=True, extra_body={"retrieval": {"collection": harbour}},
        )  # fmt: skip
        assert raw.headers["x-gearbox-variant"] == variant and raw.headers["x-gearbox-retrieval"] == "used"
        *earlier, last = list(raw.parse())
        text = "".join(chunk.choices[0].delta.content or "" for chunk in (*earlier, last) if chunk.choices)
        facts = last.model_extra["gearbox"]
        assert not any("gearbox" in (chunk.model_extra or {}) for chunk in earlier)
        # `distilled` answers 85% of such questions right (docs/design/grounding.md), and not every build of it this one
        assert "Ada Quist" in text or variant == "distilled"
        sources = [cited["source"] for cited in facts["citations"]]
        assert sources == ["norfell.md"] if "Ada Quist" in text else set(sources) <= {"norfell.md", "ostrava.md"}
        assert len([chunk for chunk in earlier if chunk.choices and chunk.choices[0].delta.content]) > 3
        ends = [one["end"] for one in facts["sentences"]]
        assert ends == sorted(ends) and all(
            end <= len(text) for end in ends
        )  # positions are those of the text that was streamed
        assert (facts["quoted"] is not None) == ("Source 1 says:" in text)

    def test_a_streamed_answer_is_the_same_as_a_whole_one(self, http: httpx.Client, harbour: str) -> None:
        """In bf16 nearly equal tokens may swap when the batch does; nothing else runs now."""
        whole = text_of(ask(http, HARBOUR, {"collection": harbour}, "int8"), False)
        streamed = ask(http, HARBOUR, {"collection": harbour}, "int8", stream=True)
        assert text_of(streamed, True) == whole
        assert [chunk["choices"][0]["finish_reason"] for chunk in chunks(streamed)].count("stop") == 1

    async def test_a_client_that_disconnects_stops_the_work_for_it(self, platform: Platform, harbour: str) -> None:
        def running() -> float:
            return platform.running_in_engine("full")

        await asyncio.to_thread(eventually, lambda: running() == 0, 15, "the engine is idle")
        body = {
            "model": f"{platform.model}:full", "messages": [{"role": "user", "content": HARBOUR}], "stream": True,
            "max_tokens": 1500, "ignore_eos": True, "retrieval": {"collection": harbour},
        }  # fmt: skip
        headers = {"authorization": f"Bearer {KEYS['alice']['key']}"}
        async with (
            httpx.AsyncClient(base_url=platform.url, headers=headers, timeout=60) as http,
            http.stream("POST", "/v1/chat/completions", json=body) as response,
        ):
            assert response.headers["x-gearbox-retrieval"] == "used"
            lines = response.aiter_lines()
            for _ in range(8):
                assert not (await anext(lines)).startswith("data: [DONE]")
            assert await asyncio.to_thread(running) == 1
        # the whole answer would take the engine more than 20 s
        await asyncio.to_thread(eventually, lambda: running() == 0, 5, "the engine gave the request up")


class TestTheBudget:
    def test_a_request_that_requires_sources_gets_an_error_without_them(self, http: httpx.Client, harbour: str) -> None:
        refused = ask(http, HARBOUR, {"collection": harbour, "on_budget": "refuse"}, **TIGHT)
        error = error_of(refused, 422)
        assert (error["code"], error["param"]) == ("impossible_budget", "retrieval.on_budget")

    @pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
    def test_a_request_that_may_go_without_sources_is_answered_with_the_reason(
        self, http: httpx.Client, harbour: str, stream: bool
    ) -> None:
        response = ask(
            http, HARBOUR, {"collection": harbour, "on_budget": "skip"}, **TIGHT, max_tokens=4, stream=stream
        )
        facts = gearbox_of(response, stream)
        assert text_of(response, stream) and response.headers["x-gearbox-retrieval"] == "skipped"
        assert facts["retrieval"]["outcome"] == "skipped" and "budget" in facts["retrieval"]["why"]
        assert facts["grounded"] is False and facts["citations"] == [] and facts["variant"] == "full"

    def test_the_dry_run_says_how_many_sources_the_budget_carries(self, http: httpx.Client, harbour: str) -> None:
        def planned(**more: Any) -> dict[str, Any]:
            body = {"model": "smollm2-135m:full", "messages": [{"role": "user", "content": HARBOUR}], **more}
            return http.post("/v1/route", json=body).json()

        two, six = (planned(retrieval={"collection": harbour, "top_k": top_k}) for top_k in (2, 6))
        assert two["retrieval"]["top_k"] == 2 and six["retrieval"]["top_k"] == 6
        assert 0 < two["retrieval"]["more_chars"] <= six["retrieval"]["more_chars"]
        assert "retrieval" not in planned() and "retrieval" not in planned(retrieval=False)

        # between what the answer alone takes and what it takes with its sources, there is no time for all of them
        alone = planned(budget={"ttft_ms": 60_000})["candidates"][0]["predicted_ttft_p95_ms"]
        limits = (alone + more_ms for more_ms in range(0, 100, 4))
        six = {"collection": harbour, "top_k": 6}
        assert any(planned(retrieval=six, budget={"ttft_ms": limit})["retrieval"]["top_k"] < 6 for limit in limits)

    def test_the_model_name_says_it_all(self, platform: Platform, harbour: str) -> None:
        raw = platform.client().chat.completions.with_raw_response.create(
            model=f"{platform.model}@best+{harbour}", messages=[{"role": "user", "content": HARBOUR}], max_tokens=ROOM,
            temperature=0,
        )  # fmt: skip
        answer = raw.parse()
        facts = answer.model_extra["gearbox"]
        assert raw.headers["x-gearbox-retrieval"] == "used"
        assert facts["variant"] == "full" or facts["reason"] == "explore"  # one in a hundred
        assert "Ada Quist" in answer.choices[0].message.content or facts["variant"] == "distilled"
        fast = platform.client().chat.completions.create(
            model=f"{platform.model}@fast+{harbour}", messages=[{"role": "user", "content": DIVISION}]
        )
        assert "91.949" in fast.choices[0].message.content

    def test_the_header_turns_it_on_and_off(self, http: httpx.Client, harbour: str) -> None:
        body = {"model": f"smollm2-135m:full+{harbour}", "messages": [{"role": "user", "content": DUNETREE}]}
        on = {"model": "smollm2-135m", "messages": [{"role": "user", "content": DIVISION}]}
        assert "91.949" in text_of(
            http.post("/v1/chat/completions", json=on, headers={"x-gearbox-retrieval": "on"}), False
        )
        off = http.post("/v1/chat/completions", json={**body, "max_tokens": 2}, headers={"x-gearbox-retrieval": "off"})
        assert gearbox_of(off, False)["variant"] == "full" and "x-gearbox-retrieval" not in off.headers
        wrong = http.post("/v1/chat/completions", json=body, headers={"x-gearbox-retrieval": "perhaps"})
        assert error_of(wrong, 400)["code"] == "invalid_retrieval"


class TestCalibration:
    COLLECTION = "grounding-calibrated"
    PLACES = ("Norfell", "Tidwick", "Ostmark", "Brellin", "Cardow", "Dunmore", "Elsing", "Farholt", "Gantry", "Halsey",
              "Ivelow", "Jarrow", "Kelham", "Lorwick", "Mersea", "Nantle", "Orsett", "Pelham", "Quorn", "Rydal")  # fmt: skip

    def calibrate(self, platform: Platform, *arguments: str) -> str:
        key = KEYS["alice"]["key"]
        done = platform.gearbox("calibrate", self.COLLECTION, "--url", platform.url, *arguments, GEARBOX_API_KEY=key)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def test_a_threshold_is_fitted_to_an_operators_questions(
        self, platform: Platform, http: httpx.Client, tmp_path: Path
    ) -> None:
        rows = []
        for year, place in enumerate(self.PLACES, 1931):
            put(http, self.COLLECTION, f"{place}.md", f"# {place}\n\nThe harbour of {place} was built in {year}.")
            rows.append({"question": f"When was the harbour of {place} built?", "source": f"{place}.md"})
        questions = tmp_path / "questions.jsonl"
        questions.write_text("\n".join(map(json.dumps, rows)))
        assert "the platform's default" in self.calibrate(platform)
        said = self.calibrate(platform, "--questions", str(questions))
        assert "20 of 20 questions find their document" in said and "from 20 questions" in said
        stored = http.get("/v1/calibration", params={"collection": self.COLLECTION}).json()
        assert stored["questions"] == 20 and 0 < stored["threshold"] < 1
        found = ask(http, rows[3]["question"], {"collection": self.COLLECTION})
        assert gearbox_of(found, False)["retrieval"]["outcome"] == "used"
        missing = ask(http, "When was the harbour of Zandvoort built?", {"collection": self.COLLECTION})
        assert gearbox_of(missing, False)["retrieval"]["outcome"] == "abstained"
        assert "the platform's default" in self.calibrate(platform, "--reset")

    def test_a_threshold_is_fitted_to_the_models_questions(self, platform: Platform, http: httpx.Client) -> None:
        for place in self.PLACES[:4]:
            put(http, self.COLLECTION, f"{place}.md", f"# {place}\n\nThe harbour of {place} was built in stone.")
        said = self.calibrate(platform, "--generate", "4", "--rate", "0.5", "--model", "smollm2-135m:full", "--dry-run")
        assert "questions find their document" in said


class TestAgents:
    """A model of 135M parameters calls tools badly: what counts is that it is given them, and that it always ends."""

    @pytest.mark.parametrize("choice", ["auto", "required"])
    def test_a_run_ends_in_an_answer_or_a_documented_error(self, http: httpx.Client, harbour: str, choice: str) -> None:
        response = ask(
            http, HARBOUR, {"collection": harbour, "agent": True}, tool_choice=choice, max_tokens=40,
            budget={"e2e_ms": 15_000},
        )  # fmt: skip
        assert response.elapsed.total_seconds() < 20
        if response.status_code != 200:
            assert error_of(response, response.status_code)["code"] == "agent_failed"
            return
        facts = gearbox_of(response, False)
        assert facts["reason"] == facts["retrieval"]["outcome"] == "agent" and facts["grounded"] is None
        assert response.json()["usage"]["completion_tokens"] > 0
