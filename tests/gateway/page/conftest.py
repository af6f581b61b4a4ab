"""Chromium, in front of the real Envoy and the whole server over the scripted upstream and memory."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, BrowserContext, Locator, Page, async_playwright, expect

from tests.gateway.edges import running_edge
from tests.gateway.page.chromium import ARGUMENTS, EXECUTABLE
from tests.support.fixtures import StartService
from tests.support.service import Service

expect.set_options(timeout=20_000)  # a guard against hanging, generous for a busy machine


@dataclass
class Site:
    """The whole of it, as a browser finds it at ``url``."""

    url: str
    service: Service


StartSite = Callable[..., AbstractAsyncContextManager[Site]]


@asynccontextmanager
async def site_of(start: StartService, folder: Path, **settings: str) -> AsyncIterator[Site]:
    """Start the server and Envoy; keywords are further settings of the server."""
    async with start(**settings) as service, running_edge(int(service.address.rpartition(":")[2]), folder) as edge:
        yield Site(edge.url, service)


@pytest.fixture
def start_site(start: StartService, tmp_path: Path) -> StartSite:
    """Start the whole of it; keywords are further settings."""
    return partial(site_of, start, tmp_path)


@pytest.fixture
async def site(start_site: StartSite) -> AsyncIterator[Site]:
    """The whole of it, with the settings at their defaults."""
    async with start_site() as running:
        yield running


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    """Chromium; a machine without it skips the test, but not CI."""
    if not EXECUTABLE:
        if os.environ.get("CI"):
            pytest.fail("there is no Chromium; install the package chromium")
        pytest.skip("needs Chromium; Debian and Ubuntu have it in the package chromium")
    async with async_playwright() as playwright:
        running = await playwright.chromium.launch(executable_path=EXECUTABLE, args=ARGUMENTS)
        yield running
        await running.close()


@dataclass
class Tab:
    """The page in a browser, with everything that it asked for and complained of."""

    page: Page
    context: BrowserContext
    origin: str
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    expected: tuple[str, ...] = ()
    """What it may complain of: the browser itself does, of every status from 400 on."""

    def watch(self, page: Page) -> None:
        """Note what a page asks for and complains of."""
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.complaints.append(f"uncaught: {error}"))
        page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))

    def check(self) -> None:
        """Fail if a request went elsewhere, or the page complained: of the policy, of an error, of anything."""
        elsewhere = [url for url in self.requests if not url.startswith((f"{self.origin}/", "data:"))]
        assert elsewhere == []
        unexpected = [text for text in self.complaints if not any(part in text for part in self.expected)]
        assert unexpected == []

    @property
    def field(self) -> Locator:
        """Where messages are written."""
        return self.page.get_by_role("textbox", name="Your message")

    @property
    def answer(self) -> Locator:
        """The text of the last answer."""
        return self.page.locator(".turn").last.locator(".prose")

    @property
    def ending(self) -> Locator:
        """How the last answer ended."""
        return self.page.locator(".turn").last.locator(".ending, .problem")

    def button(self, name: str) -> Locator:
        """Return a button by its accessible name, exactly."""
        return self.page.get_by_role("button", name=name, exact=True)

    async def ask(self, message: str) -> None:
        """Send a message by the keyboard."""
        await self.field.fill(message)
        await self.field.press("Enter")


OpenTab = Callable[..., AbstractAsyncContextManager[Tab]]


@asynccontextmanager
async def tab_of(browser: Browser, site: Site, **options: Any) -> AsyncIterator[Tab]:
    """Open the page; keywords are options of the browser's context. Checked at the end."""
    context = await browser.new_context(**options)
    tab = Tab(await context.new_page(), context, site.url)
    tab.watch(tab.page)
    await tab.page.goto(site.url)
    yield tab
    tab.check()
    await context.close()


@pytest.fixture
def open_tab(browser: Browser) -> OpenTab:
    """Open the page of a site."""
    return partial(tab_of, browser)


@pytest.fixture
async def tab(open_tab: OpenTab, site: Site) -> AsyncIterator[Tab]:
    """The page, opened."""
    async with open_tab(site) as opened:
        yield opened
