"""The page `/ui` with failures and unusual answers, which engine stubs produce on demand."""

import asyncio
import re
import time
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, Route, expect

from benchmarks.lib.sample_catalog import make_live_variant, three_gears
from benchmarks.lib.scripted_retrieval import PASSAGE, FakeRetrieval
from serve.gateway.auth import hash_key
from tests.e2e.browser import ATTACK, KEY, Site, Visit, take_pictures, until
from tests.support.gateway_server import GatewayServer, Start, Started


async def test_no_key_is_requested_where_access_is_open(visit: Visit, open_site: Site):
    tab = await visit(open_site)
    await expect(tab.page.locator(".variant")).to_have_count(3)
    await expect(tab.page.locator("#access")).to_have_text("anonymous access")
    await expect(tab.page.get_by_role("dialog")).to_be_hidden()
    tab.expected = set()


async def test_a_conversation_goes_on_until_it_is_reset(visit: Visit, open_site: Site, gateway: Started):
    tab = await visit(open_site)
    for text in ("one", "two"):
        await tab.ask(text)
    await expect(tab.last.locator(".assistant .text")).to_have_text("You said: two")
    roles = [(message["role"], message["content"]) for message in gateway.engines["full"].requests[-1]["messages"]]
    assert roles == [("user", "one"), ("assistant", "You said: one"), ("user", "two")]
    await tab.page.get_by_role("button", name="New conversation").click()
    await tab.ask("three")
    assert len(gateway.engines["full"].requests[-1]["messages"]) == 1
    await expect(tab.page.locator("#timings-plot .candidate")).to_have_count(3)


@pytest.mark.parametrize("how", ["Escape", "Stop"])
async def test_stopping_ends_the_work_in_the_engine(visit: Visit, open_site: Site, gateway: Started, how):
    tab, engine = await visit(open_site), gateway.engines["full"]
    engine.behaviour = "hold"
    await tab.send("Tell me a long story")
    await expect(tab.last.locator(".assistant .text")).to_have_text("You said")
    assert engine.running == 1
    if how == "Escape":
        await tab.page.keyboard.press("Escape")
    else:
        await tab.page.get_by_role("button", name="Stop").click()
    await expect(tab.last).to_contain_text("Stopped by you.")
    await until(lambda: engine.cancelled == 1 and engine.running == 0)
    engine.behaviour = "answer"
    await tab.ask("And now?")
    await expect(tab.last.locator(".assistant .text")).to_have_text("You said: And now?")


async def test_what_is_sent_while_the_page_still_learns_of_the_platform_is_not_lost(visit: Visit, open_site: Site):
    tab = await visit(open_site)

    async def late(route: Route) -> None:
        await asyncio.sleep(1)
        await route.continue_()

    await tab.page.route("**/v1/models", late)
    await tab.page.reload()
    await tab.send("Hello")
    await tab.page.get_by_role("button", name="Send").click()  # once more, out of impatience
    await expect(tab.last.locator(".assistant .text")).to_have_text("You said: Hello")
    await expect(tab.page.locator(".exchange")).to_have_count(1)


@pytest.mark.parametrize("behaviour", ["die mid-stream", "error event mid-stream", "end early"])
async def test_an_answer_that_breaks_off_is_said_and_can_be_had_again(visit: Visit, start_stub: Start, behaviour):
    gateway = start_stub(variants=[make_live_variant("full")])  # where no other can continue it
    tab, engine = await visit(Site(gateway.url, key=None)), gateway.engines["full"]
    engine.behaviour = behaviour
    await tab.send("Hello")
    await expect(tab.last.get_by_role("alert")).to_contain_text("stream from variant 'full' was interrupted")
    await expect(tab.last.locator(".assistant .text")).to_have_text("You said")
    engine.behaviour = "answer"
    await tab.last.get_by_role("button", name="Retry").click()
    await expect(tab.last.locator(".assistant .text")).to_have_text("You said: Hello")
    await expect(tab.page.locator(".exchange")).to_have_count(1)
    assert len(engine.requests[-1]["messages"]) == 1


async def test_an_answer_that_another_variant_continued_says_so(visit: Visit, open_site, gateway):
    tab = await visit(open_site)
    gateway.engines["full"].behaviour = "die mid-stream"
    await tab.ask("Hello")
    await expect(tab.last.locator(".assistant .text")).to_have_text("You said: Hello")
    await expect(tab.last).to_contain_text(re.compile(r"continued by int8 after \d+ tokens"))


async def test_a_reached_limit_says_when_to_try_again(visit: Visit, start_stub: Start, monkeypatch):
    now = time.time() // 60 * 60 + 30  # the limit's minute must not end in the middle of the test
    monkeypatch.setattr(time, "time", lambda: now)
    keys = [{"sha256": hash_key(KEY), "tenant": "alice", "requests_per_minute": 1}]
    tab = await visit(Site(start_stub(access={"keys": keys}).url))
    tab.expected |= {"429"}
    await tab.enter()
    await tab.ask("one")
    await tab.send("two")
    await expect(tab.last.get_by_role("alert")).to_contain_text(
        re.compile(r"The limit of 1 requests per minute is reached\. Try again in \d+ s\.")
    )
    await expect(tab.last.get_by_role("button", name="Retry")).to_be_visible()


async def test_a_server_that_is_gone_is_said(visit: Visit, monkeypatch: pytest.MonkeyPatch):
    other = GatewayServer()
    gateway = other.start()
    tab = await visit(Site(gateway.url, key=None))
    tab.expected |= {"ERR_CONNECTION_REFUSED", "ERR_CONNECTION_RESET"}
    await tab.ask("one")
    other.close(gateway)
    await asyncio.to_thread(other.stop)
    await tab.send("two")
    await expect(tab.last.get_by_role("alert")).to_have_text("The platform can’t be reached.")
    await expect(tab.page.locator("#verdict-error")).to_have_text("The platform can’t be reached.")
    await expect(tab.last.get_by_role("button", name="Retry")).to_be_visible()


async def test_after_a_lost_connection_everything_is_there_again(visit: Visit, open_site: Site):
    tab = await visit(open_site)
    tab.expected |= {"ERR_INTERNET_DISCONNECTED"}
    await tab.ask("one")
    await tab.page.context.set_offline(True)
    await tab.send("two")
    await expect(tab.last.get_by_role("alert")).to_have_text("The platform can’t be reached.")
    await tab.page.context.set_offline(False)
    await tab.last.get_by_role("button", name="Retry").click()
    await expect(tab.last.locator(".assistant .text")).to_have_text("You said: two")
    await expect(tab.page.locator("#verdict-error")).to_be_hidden()


async def test_no_healthy_variant_is_said(visit: Visit, start_stub: Start):
    tab = await visit(Site(start_stub(variants=three_gears(replicas=0)).url, key=None))
    tab.expected |= {"503"}
    await expect(tab.page.locator("#verdict-error")).to_contain_text("Refused (503): No healthy variant")
    await expect(tab.page.locator(".variant.unavailable")).to_have_count(3)
    await tab.send("Hello")
    await expect(tab.last.get_by_role("alert")).to_contain_text("No healthy variant")


async def test_without_retrieval_the_toggle_says_so(visit: Visit, open_site: Site):
    tab = await visit(open_site)
    tab.expected |= {"400", "404"}
    await expect(tab.page.locator(".variant")).to_have_count(3)
    await tab.page.get_by_text("Answer from documents").click()
    await expect(tab.page.locator("#grounded-help")).to_contain_text("no retrieval")
    await expect(tab.page.locator("#grounded")).not_to_be_checked()


async def test_markup_in_answers_and_documents_stays_text(visit: Visit, start_stub: Start):
    retrieval = FakeRetrieval()
    retrieval.passages = [{**PASSAGE, "title": ATTACK, "heading": ATTACK, "quote": f"Ada. {ATTACK}", "source": ATTACK}]
    tab = await visit(Site(start_stub(searches=retrieval, retrieval={"collection": "docs"}).url, key=None))
    await tab.ask(ATTACK)
    await expect(tab.last.locator(".assistant .text")).to_have_text(f"You said: {ATTACK}")
    await tab.page.get_by_text("Answer from documents").click()
    await tab.ask("Who?")
    await expect(tab.last.get_by_role("list", name="Sources")).to_contain_text(ATTACK)
    assert await tab.page.locator(".conversation img, .conversation script").count() == 0


async def test_sentences_are_marked_by_their_support(visit: Visit, start_stub: Start):
    retrieval = FakeRetrieval()
    said = "You said: "

    async def check(answer: str, **_: Any) -> list[dict[str, Any]]:
        middle = answer.index("B")
        return [
            {"start": len(said), "end": middle - 1, "supported": True, "score": 0.9, "source": 1},
            {"start": middle, "end": len(answer), "supported": False, "score": 0.1, "source": None},
        ]

    retrieval._check = check  # type: ignore[method-assign]
    retrieval.passages = [{**PASSAGE, "quote": "A 😀.", "heading": "Towns"}]
    tab = await visit(Site(start_stub(searches=retrieval, retrieval={"collection": "docs"}).url, key=None))
    await tab.page.get_by_text("Answer from documents").click()
    await tab.ask("B!")  # the stub answers with the source, then the question
    await expect(tab.last.locator("mark")).to_have_text("B! (no source supports this)")
    await expect(tab.last.locator(".assistant .text").first).to_contain_text("You said: A 😀.[1]")
    await expect(tab.last.locator(".assistant .text").first).to_contain_text("Source 1 says: “A 😀.”")
    await expect(tab.last.locator(".grounding .chip")).to_have_text("not grounded")
    await expect(tab.last.get_by_role("list", name="Sources")).to_contain_text("Towns")
    await tab.last.get_by_role("link", name="Source 1").click()
    await expect(tab.last.locator(".citations li")).to_be_focused()


async def test_an_abstention_and_a_computed_answer_say_what_they_are(visit: Visit, start_stub: Start):
    retrieval = FakeRetrieval()
    retrieval.passages = []
    tab = await visit(Site(start_stub(searches=retrieval, retrieval={"collection": "docs"}).url, key=None))
    await tab.page.get_by_text("Answer from documents").click()
    await tab.ask("Who?")
    await expect(tab.last.locator(".grounding")).to_contain_text("abstained: no document supports an answer")
    await expect(tab.last.locator(".assistant .chip").first).to_have_text("no variant")
    await tab.ask("What is 2 + 2?")
    await expect(tab.last.locator(".grounding")).to_contain_text("computed exactly")
    await expect(tab.last.get_by_role("list", name="Tools")).to_contain_text("calculator")


async def test_pictures_can_be_taken(browser: Browser, open_site: Site, tmp_path: Path):
    await take_pictures(open_site.url, None, tmp_path, browser)
    assert {file.name for file in tmp_path.iterdir()} == {"ui-light.png", "ui-dark.png", "ui-phone.png"}
