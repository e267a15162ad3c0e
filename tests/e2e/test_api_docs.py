"""The page `/docs` in a real browser: it describes every operation, contacts no other host, and sends requests."""

from playwright.async_api import Browser, expect

from serve.gateway.openapi import operations
from tests.e2e.browser import KEY, Site, Tab


async def test_an_operation_is_read_and_tried(browser: Browser, site: Site):
    tab = Tab(await (await browser.new_context()).new_page(), site)
    await tab.page.goto(f"{site.url}/docs")
    await expect(tab.page.locator(".opblock")).to_have_count(len(operations()))
    await tab.page.get_by_role("button", name="Authorize").first.click()
    await tab.page.get_by_label("auth-bearer-value").fill(KEY)
    await tab.page.get_by_role("button", name="Apply credentials").click()
    await tab.page.get_by_role("button", name="Close", exact=True).click()
    operation = tab.page.locator("#operations-routing-listModels")
    await operation.locator(".opblock-summary-control").click()
    await operation.get_by_role("button", name="Try it out").click()
    await operation.get_by_role("button", name="Execute").click()
    await expect(operation.locator(".live-responses-table tbody td.response-col_status").first).to_contain_text("200")
    assert tab.problems == []
    await tab.page.context.close()
