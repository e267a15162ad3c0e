"""The functions of the page `/ui`: on the gateway with engine stubs, and on the started platform."""

import asyncio
import json
import re

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Route, expect

from tests.e2e.browser import KEY, Site, Tab, Visit
from tests.support.platform import Platform


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
    await expect(tab.page.locator("#chat-status")).to_contain_text("full answered:")


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
    await _answer_from_documents(tab, site)
    await tab.page.get_by_label("Message").fill("Who leads Larkhaven?")
    await expect(tab.verdict).to_contain_text("The budget allows")
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
    await _answer_from_documents(tab, site)
    await tab.ask("Who leads Larkhaven?")
    await tab.page.get_by_text("As a table").click()
    await expect(tab.page.locator("tr.ruled-out")).to_have_count(2)
    await _no_violations(tab)


async def _answer_from_documents(tab: Tab, site: Site) -> None:
    """Fill the collection first: else the page may ask for a decision about the default collection, which is missing here."""
    await tab.page.locator("#collection").evaluate("(field, name) => { field.value = name }", site.collection)
    await tab.page.get_by_text("Answer from documents").click()
    await expect(tab.page.get_by_label("Collection")).to_be_visible()


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
    """The answer goes on until its limit, far beyond the time that the test waits, whatever the model would say."""
    tab = await visit(Site(platform.url))

    async def without_end(route: Route) -> None:
        await route.continue_(post_data=json.dumps({**route.request.post_data_json, "ignore_eos": True}))

    await tab.page.route("**/v1/chat/completions", without_end)
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
