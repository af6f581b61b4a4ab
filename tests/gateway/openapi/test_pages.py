"""Swagger UI and ReDoc through Envoy: all of it is there, and comes from nowhere else."""

from __future__ import annotations

import os
import re
from html.parser import HTMLParser
from urllib.parse import urljoin, urlsplit

import aiohttp
import pytest

from tests.gateway.edges import Edge
from tests.gateway.page.chromium import ARGUMENTS, EXECUTABLE
from tests.support.process import ROOT

pytestmark = pytest.mark.e2e

PAGES = ("/docs", "/redoc")
TYPES = {".js": "text/javascript", ".css": "text/css", ".json": "application/json"}


class References(HTMLParser):
    """Collects what a page refers to, and what it runs of its own."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.inline: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.found += [value for name in ("src", "href") if (value := given.get(name))]
        if (tag == "script" and "src" not in given) or tag == "style":
            self.inline.append(tag)
        self.inline += [name for name in given if name.startswith("on") or name == "style"]


@pytest.mark.parametrize("page", PAGES)
async def test_everything_a_page_refers_to_is_on_the_same_host(http: aiohttp.ClientSession, page: str) -> None:
    async with http.get(page) as response:
        assert response.status == 200
        assert response.headers["content-type"] == "text/html; charset=utf-8"
        references = References(await response.text())
    assert references.inline == []
    assets = [reference for reference in references.found if not reference.startswith("data:")]
    assert {urlsplit(asset).netloc for asset in assets} == {""}
    assert any("/assets/" in asset for asset in assets)
    for asset in assets:
        async with http.get(urljoin(page, asset)) as response:
            assert response.status == 200, asset
            assert response.content_type == TYPES[re.search(r"\.\w+$", asset)[0]], asset  # type: ignore[index]  # each has one
            text = await response.text()
        if asset.endswith(".css"):
            assert "@import" not in text
            assert set(re.findall(r"url\(['\"]?(\w+:|//)", text)) <= {"data:"}, asset


@pytest.mark.parametrize("page", PAGES)
async def test_the_policy_lets_nothing_in_from_elsewhere(http: aiohttp.ClientSession, page: str) -> None:
    async with http.get(page) as response:
        policy = response.headers["content-security-policy"]
    rules = {name: sources for name, *sources in (rule.split() for rule in policy.split(";"))}
    assert rules.pop("default-src") == ["'none'"]
    assert rules["script-src"] == ["'self'"]
    assert {source for sources in rules.values() for source in sources} == {
        *("'self'", "'none'", "data:", "blob:", "'unsafe-inline'"),
    }
    assert [name for name, sources in rules.items() if "'unsafe-inline'" in sources] == ["style-src"]
    assert rules["frame-ancestors"] == ["'none'"]


async def test_an_asset_that_is_known_is_not_sent_again(http: aiohttp.ClientSession) -> None:
    path = "/docs/assets/swagger-ui.js"
    async with http.get(path) as response:
        etag = response.headers["etag"]
        assert response.headers["cache-control"] == "no-cache"
        assert response.headers["x-content-type-options"] == "nosniff"
        assert len(await response.read()) > 1_000_000
    for known in (etag, f'"other", {etag}'):
        async with http.get(path, headers={"if-none-match": known}) as response:
            assert response.status == 304
            assert await response.read() == b""
    async with http.get(path, headers={"if-none-match": '"other"'}) as response:
        assert response.status == 200


@pytest.mark.parametrize("name", ["nothing.js", "swagger.html", "VERSIONS.txt", "..%2f..%2fdocs.py", "%2e%2e"])
async def test_only_assets_are_handed_out(http: aiohttp.ClientSession, name: str) -> None:
    async with http.get(f"/docs/assets/{name}") as response:
        assert response.status in {400, 404}
        assert "import" not in await response.text()


def test_each_vendored_script_has_its_licence_beside_it() -> None:
    vendor = ROOT / "gateway" / "docs_pages" / "vendor"
    names = {path.name for path in vendor.iterdir()}
    scripts = [path.stem for path in vendor.glob("*.js")]
    assert sorted(scripts) == ["redoc", "swagger-ui"]
    assert {f"{script}.LICENSE.txt" for script in scripts} <= names


@pytest.mark.parametrize(
    ("page", "shown"), [("/docs", "#operations-Gateway-chat"), ("/redoc", "[id='operation/chat']")]
)
async def test_a_browser_shows_the_page_and_asks_no_other_host(site: Edge, page: str, shown: str) -> None:
    if not EXECUTABLE:
        if os.environ.get("CI"):
            pytest.fail("there is no Chromium; install the package chromium")
        pytest.skip("needs Chromium; Debian and Ubuntu have it in the package chromium")
    from playwright.async_api import async_playwright

    asked: list[str] = []
    complaints: list[str] = []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=EXECUTABLE, args=ARGUMENTS)
        tab = await browser.new_page()
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        await tab.goto(site.url + page)
        await tab.wait_for_selector(shown, timeout=60_000)
        assert "/api/v1/chat" in await tab.inner_text("body")
        await tab.wait_for_load_state("networkidle")
        await browser.close()
    assert complaints == []
    assert f"{site.url}/openapi.json" in asked
    assert [url for url in asked if not url.removeprefix("blob:").startswith(site.url)] == []
