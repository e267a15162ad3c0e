"""Fixtures for `/ui` in Chromium: on the real gateway with engine stubs, and on the started platform."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser

from benchmarks.lib.scripted_retrieval import FakeRetrieval
from serve.gateway.auth import hash_key
from tests.e2e.browser import KEY, Site, Tab, Visit, launched
from tests.support.gateway_server import GatewayServer, Start, Started
from tests.support.platform import Platform


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of the browser; where there is none the test is skipped."""
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("chromium is not installed (Debian package 'chromium')")
    return path


@pytest_asyncio.fixture(scope="session")
async def browser(chromium: str) -> AsyncIterator[Browser]:
    async with launched(chromium) as browser:
        yield browser


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


@pytest.fixture(scope="module")
def platform_site(platform: Platform) -> Iterator[Site]:
    """Of the module, so that no tab is open any more, with a decision under way, when its collection is deleted."""
    document = {"collection": "ui-tests", "source": "larkhaven.md", "content": "Ada Quist leads Larkhaven."}
    with platform.http() as http:
        http.post("/v1/documents", json=document).raise_for_status()
        yield Site(platform.url, collection="ui-tests")
        http.delete("/v1/documents", params={"collection": "ui-tests"}).raise_for_status()


@pytest.fixture(params=["stub", pytest.param("platform", marks=pytest.mark.platform)])
def site(request: pytest.FixtureRequest, start_stub: Start) -> Iterator[Site]:
    """The page with access by key, and documents: behind it engine stubs, or everything."""
    if request.param == "platform":
        yield request.getfixturevalue("platform_site")
        return
    keys = [{"sha256": hash_key(KEY), "tenant": "alice", "budget": "balanced"}]
    gateway = start_stub(searches=FakeRetrieval(), retrieval={"collection": "docs"}, access={"keys": keys})
    yield Site(gateway.url)


@pytest.fixture
def gateway(start_stub: Start) -> Started:
    """Engine stubs and anonymous access."""
    return start_stub()


@pytest.fixture
def open_site(gateway: Started) -> Site:
    return Site(gateway.url, key=None)
