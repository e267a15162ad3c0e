"""The page `/ui` in a real browser: on the gateway with engine stubs, and on the started platform.

`python -m tests.e2e.test_ui URL FOLDER` takes the pictures of the docs from a running platform (its key: GEARBOX_API_KEY).
"""

import asyncio
import math
import os
import re
import shutil
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, ConsoleMessage, Page, Request, async_playwright, expect

from serve.auth import hash_key
from tests.catalog import three_gears
from tests.started import KEYS, Platform
from tests.unit.fake_retrieval import PASSAGE, FakeRetrieval
from tests.unit.gateway_server import GatewayServer, Start, Started

KEY = KEYS["alice"]["key"]
CHROMIUM = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
ATTACK = '<img src=x onerror="window.stolen=1"><script>window.stolen=1</script>'
PATIENCE_MS = 30_000  # of every expectation: the real model on a busy machine

expect.set_options(timeout=PATIENCE_MS)


# ------------------------------------------------------------------------------------------------------------ fixtures


@dataclass
class Site:
    """Where the page is, and who may use it."""

    url: str
    key: str | None = KEY
    collection: str = "docs"  # with a document about Larkhaven in it


@dataclass
class Tab:
    """A browser's tab with the page in it. Whatever goes wrong in it is a problem at the end of its test."""

    page: Page
    site: Site
    expected: set[str] = field(default_factory=lambda: {"401"})  # failures of requests that the test provokes
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.problems.append(f"uncaught: {error}"))
        self.page.on("request", self._request)

    def _console(self, message: ConsoleMessage) -> None:
        if message.type not in ("error", "warning"):
            return
        failed = re.match(
            r"Failed to load resource: (?:the server responded with a status of (\d+)|net::(\w+))", message.text
        )
        if not failed or (failed[1] or failed[2]) not in self.expected:
            self.problems.append(message.text)

    def _request(self, request: Request) -> None:
        if urlsplit(request.url).netloc != urlsplit(self.site.url).netloc:
            self.problems.append(f"asked another host: {request.url}")
        if self.site.key and self.site.key in request.url:
            self.problems.append(f"the key is in an address: {request.url}")

    async def enter(self, key: str | None = None) -> None:
        """Give the key that the page asks for."""
        await self.page.get_by_label("Key", exact=True).fill(key or self.site.key or "")
        await self.page.get_by_role("button", name="Use this key").click()

    async def send(self, text: str) -> None:
        await self.page.get_by_label("Message").fill(text)
        await self.page.get_by_role("button", name="Send").click()

    async def ask(self, text: str) -> None:
        """Send, and wait until the answer is whole."""
        before = await self.page.locator(".exchange").count()
        await self.send(text)
        await expect(self.page.locator(".exchange:not(.streaming)")).to_have_count(before + 1)

    async def slide(self, label: str, key: str) -> None:
        await self.page.get_by_label(label).press(key)

    @property
    def last(self) -> Any:
        return self.page.locator(".exchange").last

    @property
    def verdict(self) -> Any:
        return self.page.locator("#verdict")


Visit = Callable[..., Awaitable[Tab]]


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of the browser; where there is none the test is skipped, except in CI, where it fails."""
    path = shutil.which("chromium")
    if path is None:
        message = "chromium is not installed (Debian package 'chromium')"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    return path


@pytest_asyncio.fixture(scope="session")
async def browser(chromium: str) -> AsyncIterator[Browser]:
    async with _browser(chromium) as browser:
        yield browser


@asynccontextmanager
async def _browser(path: str) -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=CHROMIUM)
        yield browser
        await browser.close()


class CancellingServer(GatewayServer):
    """Cancels a request whose client went away, as Ray Serve does."""

    async def _dispatch(self, scope: Any, receive: Any, send: Any) -> None:
        left, whole = asyncio.Event(), asyncio.Event()

        async def listen() -> Any:
            message = await receive()
            if not message.get("more_body"):
                whole.set()
            return message

        async def watch() -> None:
            await whole.wait()
            while (await receive())["type"] != "http.disconnect":
                pass
            left.set()
            if not serving.done():
                serving.cancel()

        serving = asyncio.ensure_future(super()._dispatch(scope, listen, send))
        watching = asyncio.create_task(watch())
        try:
            await serving
        except asyncio.CancelledError:
            if not left.is_set():
                raise
        finally:
            watching.cancel()


@pytest.fixture(scope="session")
def server() -> Iterator[GatewayServer]:
    server = CancellingServer()
    yield server
    server.stop()


@pytest.fixture
def start_stub(server: GatewayServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts the real gateway with engine stubs; see `GatewayServer.start`. Nothing stays in flight."""
    started: list[Started] = []

    def start(**options: object) -> Started:
        for name in list(os.environ):
            if name.startswith("GEARBOX_"):
                monkeypatch.delenv(name)
        started.append(server.start(**options))
        return started[-1]

    yield start
    for gateway in started:
        gateway.settle()
        server.close(gateway)


@pytest_asyncio.fixture
async def visit(browser: Browser, start_stub: Start) -> AsyncIterator[Visit]:
    """Opens the page in a tab of its own, closed before the gateway is; fails where the tab had problems."""
    tabs: list[Tab] = []

    async def open_page(site: Site, **context: Any) -> Tab:
        page = await (await browser.new_context(**context)).new_page()
        tabs.append(Tab(page, site))
        await page.goto(f"{site.url}/ui")
        return tabs[-1]

    yield open_page
    for tab in tabs:
        assert await tab.page.evaluate("window.stolen") is None, "text of a message or document was run"
        await tab.page.context.close()
    assert [problem for tab in tabs for problem in tab.problems] == []


@pytest.fixture(params=["stub", pytest.param("platform", marks=pytest.mark.platform)])
def site(request: pytest.FixtureRequest, start_stub: Start) -> Iterator[Site]:
    """The page with access by key, and documents: behind it engine stubs, or everything."""
    if request.param == "platform":
        platform = request.getfixturevalue("platform")
        document = {"collection": "ui-tests", "source": "larkhaven.md", "content": "Ada Quist leads Larkhaven."}
        with platform.http() as http:
            http.post("/v1/documents", json=document).raise_for_status()
            yield Site(platform.url, collection="ui-tests")
            http.delete("/v1/documents", params={"collection": "ui-tests"}).raise_for_status()
        return
    keys = [{"sha256": hash_key(KEY), "tenant": "alice", "budget": "balanced"}]
    gateway = start_stub(searches=FakeRetrieval(), retrieval={"collection": "docs"}, access={"keys": keys})
    yield Site(gateway.url)


@pytest.fixture
def gateway(start_stub: Start) -> Started:
    """Engine stubs and open access."""
    return start_stub()


@pytest.fixture
def open_site(gateway: Started) -> Site:
    return Site(gateway.url, key=None)


async def until(true: Callable[[], object]) -> None:
    """Wait for what the browser does not show."""
    async with asyncio.timeout(PATIENCE_MS / 1000):
        while not true():
            await asyncio.sleep(0.01)


# ------------------------------------------------------------------------------------- on the stub and on the platform


async def test_a_request_is_typed_budgeted_sent_and_streamed(visit: Visit, site: Site):
    tab = await visit(site)
    await tab.enter()
    await expect(tab.page.locator("#candidates tbody tr")).to_have_count(3)
    await tab.page.get_by_label("Message").fill("What is a gearbox?")
    await tab.page.get_by_label("Profile").select_option("fast")
    await tab.slide("Quality at least", "End")
    await expect(tab.page.get_by_label("Quality at least")).to_have_attribute("aria-valuetext", "1")
    await expect(tab.verdict.locator("strong")).to_have_text("full")
    await expect(tab.page.locator("tr.ruled-out")).to_have_count(2)
    await expect(tab.page.locator("tr.ruled-out").first).to_contain_text("quality")
    await expect(tab.page.locator("#decision-plot .candidate.chosen")).to_contain_text("✓ full")
    await expect(tab.page.locator("#decision-plot .candidate.out")).to_have_count(2)
    await tab.slide("Answer of at most", "Home")
    await tab.page.get_by_role("button", name="Send").click()
    await expect(tab.last.locator(".assistant .chip").first).to_have_text("full")
    await expect(tab.last.locator(".meta")).to_contain_text("predicted")
    assert await tab.last.locator(".assistant .text").inner_text()
    await expect(tab.page.locator("#timings-plot .candidate")).to_have_count(1)
    await tab.page.get_by_text("As a table").click()
    await expect(tab.page.locator("#timings-table tbody tr")).to_have_count(1)
    await expect(tab.page.locator("#spoken")).to_contain_text("full answered:")


async def test_a_variant_can_be_pinned(visit: Visit, site: Site):
    tab = await visit(site)
    await tab.enter()
    await tab.page.get_by_label("Variant", exact=True).select_option("int8")
    await expect(tab.verdict).to_contain_text("int8: pinned by you")
    await tab.slide("Answer of at most", "Home")
    await tab.ask("Hello")
    await expect(tab.last.locator(".assistant .chip").first).to_have_text("int8")


async def test_a_budget_that_nothing_fits_is_said_in_words(visit: Visit, site: Site):
    tab = await visit(site)
    tab.expected |= {"422", "429"}
    await tab.enter()
    await tab.page.get_by_text("Refuse when nothing fits").click()
    await tab.slide("Cost at most", "Home")
    await tab.slide("First token within", "Home")
    await expect(tab.page.locator("#decision input[value=ttft]")).to_be_checked()
    await tab.slide("Whole answer within", "Home")
    await expect(tab.page.locator("#decision input[value=e2e]")).to_be_checked()  # the time that was limited last
    await expect(tab.page.locator("#verdict-error")).to_contain_text(re.compile(r"Refused \(4(22|29)\): No variant"))
    await expect(tab.page.locator("#candidates tbody tr")).to_have_count(3)
    await tab.page.get_by_role("button", name="Back to the profile").click()
    await expect(tab.page.locator("#verdict-error")).to_be_hidden()
    await expect(tab.page.get_by_label("First token within")).to_have_attribute("aria-valuetext", "no limit")


async def test_a_wrong_key_is_said_and_a_right_one_stays_in_the_tab(visit: Visit, site: Site):
    tab = await visit(site)
    await tab.enter("gbx-wrong")
    await expect(tab.page.locator("#key-error")).to_contain_text("not known")
    assert await tab.page.evaluate("sessionStorage.length") == 0
    await tab.enter()
    await expect(tab.page.get_by_role("dialog")).to_be_hidden()
    await expect(tab.page.locator(".variant")).to_have_count(3)
    assert await tab.page.evaluate("[Object.values(sessionStorage), Object.values(localStorage), document.cookie]") == [
        [KEY], [], ""
    ]  # fmt: skip
    await tab.page.reload()
    await expect(tab.page.locator(".variant")).to_have_count(3)
    await tab.page.get_by_role("button", name="Forget key").click()
    await expect(tab.page.get_by_role("dialog")).to_be_visible()
    assert await tab.page.evaluate("sessionStorage.length") == 0
    await expect(tab.page.locator(".variant")).to_have_count(0)


async def test_an_answer_from_documents_shows_what_it_rests_on(visit: Visit, site: Site):
    tab = await visit(site)
    await tab.enter()
    await tab.page.get_by_label("Profile").select_option("best")
    await tab.slide("Answer of at most", "Home")
    await tab.page.get_by_text("Answer from documents").click()
    await tab.page.get_by_label("Collection").fill(site.collection)
    await tab.page.get_by_label("Message").fill("Who leads Larkhaven?")
    await expect(tab.verdict).to_contain_text("The budget carries")
    await tab.page.get_by_role("button", name="Send").click()
    await expect(tab.last.locator(".grounding")).to_contain_text("answered from sources")
    await expect(tab.last.locator(".grounding .chip")).to_have_text(
        re.compile("^(✓ grounded|not grounded|grounding not checked)$")
    )
    if await tab.last.locator(".grounding .chip").inner_text() != "grounding not checked":
        await expect(tab.last.get_by_role("list", name="Sources")).to_contain_text("Ada Quist leads Larkhaven.")


async def test_everything_can_be_done_with_the_keyboard(visit: Visit, site: Site):
    tab = await visit(site)
    keyboard = tab.page.keyboard
    await expect(tab.page.get_by_label("Key", exact=True)).to_be_focused()
    await keyboard.type(KEY)
    await keyboard.press("Enter")
    await expect(tab.page.get_by_label("Message")).to_be_focused()
    await keyboard.type("Hello")
    await expect(tab.verdict.locator("strong")).to_have_count(1)
    await _tab_to(tab, "#profile")
    await keyboard.type("cheap")
    await expect(tab.page.locator("input[name=objective][value=cost]")).to_be_checked()
    await _tab_to(tab, "input[name=objective]:checked")
    await keyboard.press("ArrowLeft")
    await expect(tab.page.locator("input[name=objective][value=latency]")).to_be_checked()
    await _tab_to(tab, "#slider-min_quality")
    await keyboard.press("End")
    await expect(tab.verdict).to_contain_text("full: the fastest that fits")
    await _tab_to(tab, "#slider-max_tokens")
    await keyboard.press("Home")
    await _tab_to(tab, "#reject")
    await keyboard.press("Space")
    await expect(tab.page.locator("#reject")).to_be_checked()
    await _tab_to(tab, "#draft", "Shift+Tab")
    await keyboard.press("Enter")
    await expect(tab.page.locator("#timings-table tbody tr")).to_have_count(1)
    await _tab_to(tab, "#timings-more summary")
    await keyboard.press("Enter")
    await expect(tab.page.locator("#timings-table")).to_be_visible()
    await _tab_to(tab, "#reset", "Shift+Tab")
    await keyboard.press("Enter")
    await expect(tab.page.locator(".exchange")).to_have_count(0)


async def _tab_to(tab: Tab, selector: str, key: str = "Tab") -> None:
    """Press `key` until the element has the focus, which must be seen at every stop."""
    for _ in range(60):
        await tab.page.keyboard.press(key)
        focused = tab.page.locator(":focus")
        if await focused.evaluate("(node, selector) => node.matches(selector)", selector):
            return
    raise AssertionError(f"{selector} can't be reached with {key}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_nothing_is_in_the_way_of_people_with_disabilities(visit: Visit, site: Site, scheme):
    tab = await visit(site, color_scheme=scheme, reduced_motion="reduce")
    await expect(tab.page.get_by_role("dialog")).to_be_visible()
    await _no_violations(tab)
    await tab.enter()
    await expect(tab.page.locator("#candidates tbody tr")).to_have_count(3)
    await expect(tab.page.locator(".variant")).to_have_count(3)
    await _no_violations(tab)
    await tab.slide("Quality at least", "End")
    await tab.slide("Answer of at most", "Home")
    await tab.ask("Hello")
    await tab.page.get_by_text("Answer from documents").click()
    await tab.page.get_by_label("Collection").fill(site.collection)
    await tab.ask("Who leads Larkhaven?")
    await tab.page.get_by_text("As a table").click()
    await expect(tab.page.locator("tr.ruled-out")).to_have_count(2)
    await _no_violations(tab)


async def _no_violations(tab: Tab) -> None:
    found = await Axe().run(tab.page)
    assert found.violations_count == 0, found.generate_report()


@pytest.mark.parametrize(("width", "height"), [(360, 740), (640, 400)], ids=["phone", "zoomed to 200%"])
async def test_it_fits_narrow_windows(visit: Visit, site: Site, width, height):
    tab = await visit(site, viewport={"width": width, "height": height})
    await tab.enter()
    await expect(tab.page.locator(".variant")).to_have_count(3)
    await tab.slide("Answer of at most", "Home")
    await tab.ask("a-very-long-word-" * 20)
    assert await tab.page.evaluate("document.documentElement.scrollWidth") <= width


async def test_it_is_dark_where_the_system_is_and_the_toggle_wins(visit: Visit, site: Site):
    async def brightness() -> float:
        colour = await tab.page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(map(int, re.findall(r"\d+", colour)[:3])) / 3

    tab = await visit(site, color_scheme="dark")
    assert await brightness() < 60
    await tab.enter()
    await tab.page.get_by_role("button", name="Theme: system").click()
    await expect(tab.page.get_by_role("button", name="Theme: light")).to_be_visible()
    assert await brightness() > 200
    await tab.page.reload()
    await expect(tab.page.get_by_role("button", name="Theme: light")).to_be_visible()
    assert await brightness() > 200


@pytest.mark.platform
async def test_stopping_ends_the_work_in_a_real_engine(visit: Visit, platform: Platform):
    """The whole answer would take the engine much longer than it is waited for."""
    tab = await visit(Site(platform.url))
    await tab.enter()
    await tab.page.get_by_label("Variant", exact=True).select_option("full")
    await tab.slide("Answer of at most", "End")
    await tab.send("Count from one to one thousand in words, without leaving any number out.")
    await expect(tab.last.locator(".assistant .text")).not_to_be_empty()
    assert await asyncio.to_thread(platform.running_in_engine, "full") == 1
    await tab.page.keyboard.press("Escape")
    await expect(tab.last).to_contain_text("Stopped by you.")
    async with asyncio.timeout(5):
        while await asyncio.to_thread(platform.running_in_engine, "full"):
            await asyncio.sleep(0.1)


# ----------------------------------------------------------------------------------------------- what only a stub does


async def test_where_access_is_open_no_key_is_asked_for(visit: Visit, open_site: Site):
    tab = await visit(open_site)
    await expect(tab.page.locator(".variant")).to_have_count(3)
    await expect(tab.page.locator("#access")).to_have_text("open access")
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


@pytest.mark.parametrize("behaviour", ["die mid-stream", "error event mid-stream", "end early"])
async def test_an_answer_that_breaks_off_is_said_and_can_be_had_again(visit: Visit, open_site, gateway, behaviour):
    tab, engine = await visit(open_site), gateway.engines["full"]
    engine.behaviour = behaviour
    await tab.send("Hello")
    await expect(tab.last.get_by_role("alert")).to_contain_text("broke off at variant 'full'")
    await expect(tab.last.locator(".assistant .text")).to_have_text("You said")
    engine.behaviour = "answer"
    await tab.last.get_by_role("button", name="Retry").click()
    await expect(tab.last.locator(".assistant .text")).to_have_text("You said: Hello")
    await expect(tab.page.locator(".exchange")).to_have_count(1)
    assert len(engine.requests[-1]["messages"]) == 1


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


# ------------------------------------------------------------------------------------------------------------- pictures


async def take_pictures(url: str, key: str | None, folder: Path, browser: Browser) -> None:
    """`ui-light.png`, `ui-dark.png` (further down) and `ui-phone.png` of a platform, after answers at various budgets."""
    for name, scheme, width, height in (
        ("light", "light", 1440, 1180), ("dark", "dark", 1440, 1180), ("phone", "light", 390, 1500),
    ):  # fmt: skip
        context = await browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
        )
        tab = Tab(await context.new_page(), Site(url, key))
        await tab.page.goto(f"{url}/ui")
        if key:
            await tab.enter()
        await expect(tab.page.locator(".variant").first).to_be_visible()
        await tab.page.get_by_label("Answer of at most").fill("52")
        for profile, question in (
            ("best", "What is a gearbox?"), ("fast", "Why does a car have several gears?"), ("cheap", "Name three colours."),
            ("balanced", "What is the capital of France?"), ("best", "Write a sentence about the sea."),
        ):  # fmt: skip
            await tab.page.get_by_label("Profile").select_option(profile)
            await tab.ask(question)
        await tab.page.get_by_label("Profile").select_option("best")
        await tab.page.get_by_label("Message").fill("Explain why low gears are stronger, in one paragraph")
        await tab.page.get_by_label("Whole answer within").fill(str(await _limit_between(tab)))
        await expect(tab.verdict).to_contain_text("Ruled out")
        if name == "dark":  # the other half of the page
            await tab.page.locator(".variant").last.scroll_into_view_if_needed()
        await tab.page.screenshot(path=folder / f"ui-{name}.png")
        await context.close()


async def _limit_between(tab: Tab) -> int:
    """Place of the slider for a time that the best variant is expected to miss and another to keep."""
    async with tab.page.expect_response("**/v1/route") as asked:
        await tab.page.get_by_label("Whole answer within").fill("120")
    candidates = (await (await asked.value).json())["candidates"]
    best = max(candidates, key=lambda one: one["quality"])["predicted_e2e_p95_ms"]
    others = [one["predicted_e2e_p95_ms"] for one in candidates if one["predicted_e2e_p95_ms"] < best]
    limit_ms = math.sqrt(best * max(others, default=best / 2))
    return round(120 * math.log(limit_ms / 50) / math.log(600_000 / 50))


async def test_pictures_can_be_taken(browser: Browser, open_site: Site, tmp_path: Path):
    await take_pictures(open_site.url, None, tmp_path, browser)
    assert {file.name for file in tmp_path.iterdir()} == {"ui-light.png", "ui-dark.png", "ui-phone.png"}


async def _main(url: str, folder: Path) -> None:
    async with _browser(shutil.which("chromium") or "chromium") as browser:
        await take_pictures(url, os.environ.get("GEARBOX_API_KEY"), folder, browser)


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1].rstrip("/"), Path(sys.argv[2])))
