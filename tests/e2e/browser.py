"""Drive the page `/ui` in a real browser, for tests and for the screenshots in the docs.

`python -m tests.e2e.browser URL FOLDER` takes the screenshots from a running platform (its key: GEARBOX_API_KEY).
"""

import asyncio
import math
import os
import re
import shutil
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.async_api import Browser, ConsoleMessage, Page, Request, async_playwright, expect

from tests.support.platform import KEYS

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
            self.problems.append(f"request to another host: {request.url}")
        if self.site.key and self.site.key in request.url:
            self.problems.append(f"the key is in an address: {request.url}")

    async def enter(self, key: str | None = None) -> None:
        """Give the key that the page asks for; with the right one, wait for the first decision."""
        await self.page.get_by_label("Key", exact=True).fill(key or self.site.key or "")
        await self.page.get_by_role("button", name="Use this key").click()
        if key is None:
            await expect(self.page.locator("#candidates tbody tr")).to_have_count(3)

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


@asynccontextmanager
async def launched(path: str) -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=CHROMIUM)
        yield browser
        await browser.close()


async def until(true: Callable[[], object]) -> None:
    """Wait for what the browser does not show."""
    async with asyncio.timeout(PATIENCE_MS / 1000):
        while not true():
            await asyncio.sleep(0.01)


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
        await tab.page.get_by_label("Cost at most").fill(str(await _limit_between(tab)))
        await expect(tab.verdict).to_contain_text("Ruled out")
        if name == "dark":  # the other half of the page
            await tab.page.locator(".variant").last.scroll_into_view_if_needed()
        await tab.page.screenshot(path=folder / f"ui-{name}.png")
        await context.close()


async def _limit_between(tab: Tab) -> int:
    """Place of the slider for a cost that the best variant is expected to exceed and another not."""
    async with tab.page.expect_response("**/v1/route") as response:
        await tab.page.get_by_label("Cost at most").fill("120")
    candidates = (await (await response.value).json())["candidates"]
    best = max(candidates, key=lambda one: one["quality"])["cost_usd"]
    others = [one["cost_usd"] for one in candidates if one["cost_usd"] < best]
    limit = math.sqrt(best * max(others, default=best / 2))
    return round(120 * math.log(limit / 1e-8) / math.log(1e-2 / 1e-8))


async def _main(url: str, folder: Path) -> None:
    async with launched(shutil.which("chromium") or "chromium") as browser:
        await take_pictures(url, os.environ.get("GEARBOX_API_KEY"), folder, browser)


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1].rstrip("/"), Path(sys.argv[2])))
