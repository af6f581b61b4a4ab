"""The chat page for everyone: keyboards, screen readers, small screens, dark rooms, still pictures."""

from __future__ import annotations

import asyncio
from typing import Literal

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import expect

from tests.gateway.page.conftest import OpenTab, Site, Tab
from tests.gateway.page.test_conversation import slowly
from tests.support.upstream import Upstream, saying

pytestmark = pytest.mark.e2e

RICH = """\
# A heading

Some *text*, **bold**, `code` and [a link](https://example.org/).

```python
def answer() -> int:
    return 42  # a comment that is long enough to have to be scrolled to, on whatever screen this is read, be it wide
```

| Name | Count |
|:-----|------:|
| one  |     1 |

1. first
   - nested
2. second

> quoted
"""


async def violations(tab: Tab) -> list[str]:
    """Return what axe-core has against the page as it is now."""
    results = await Axe().run(tab.page)
    return [
        f"{item['id']}: {item['help']}: {[node['html'] for node in item['nodes']]}"
        for item in results.response["violations"]
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_axe_finds_nothing(
    open_tab: OpenTab, site: Site, model: Upstream, scheme: Literal["light", "dark"]
) -> None:
    model.answer = saying(RICH)
    async with open_tab(site, color_scheme=scheme, reduced_motion="reduce") as tab:
        await expect(tab.page.get_by_role("button", name="What is it?")).to_be_visible()
        assert await violations(tab) == []
        await tab.ask("How?")
        await expect(tab.ending).to_be_visible()
        await tab.page.locator("summary").click()
        assert await violations(tab) == []
        model.answer = saying("half", reason=None)
        await tab.ask("And then?")
        await expect(tab.page.get_by_role("alert")).to_be_visible()
        assert await violations(tab) == []


async def test_everything_is_done_by_the_keyboard(tab: Tab, model: Upstream) -> None:
    page, keyboard = tab.page, tab.page.keyboard
    await expect(page.get_by_role("button", name="What is it?")).to_be_visible()
    await expect(tab.field).to_be_focused()
    # Backwards to the top of the page, where the way past everything comes first.
    skip = page.get_by_role("link", name="Skip to the message field")
    order = [
        page.get_by_role("button", name="What is it?"),
        page.get_by_role("button", name="Colours: as the system"),
        page.get_by_role("link", name="API"),
        skip,
    ]
    for place in order:
        await keyboard.press("Shift+Tab")
        await expect(place).to_be_focused()
    await expect(skip).to_be_in_viewport(ratio=1)
    await keyboard.press("Enter")
    await expect(tab.field).to_be_focused()

    await keyboard.type("First line")
    await keyboard.press("Shift+Enter")
    await keyboard.type("second line")
    await expect(tab.field).to_have_value("First line\nsecond line")
    assert model.chats == []
    model.answer, turns = slowly("Half")
    await keyboard.press("Enter")
    turns.put_nowait(None)
    await expect(tab.answer).to_have_text("Half")
    await expect(tab.field).to_have_value("")
    assert "First line\nsecond line" in model.chats[0].messages[-1]["content"]
    # What is written meanwhile stays, and waits.
    await keyboard.type("And")
    await keyboard.press("Enter")
    await keyboard.press("Escape")
    await expect(tab.ending).to_contain_text("Stopped")
    await expect(tab.field).to_have_value("And")
    assert len(model.chats) == 1
    # Until the server knows that its reader has left, the same question joins the answer that is being written.
    await asyncio.wait_for(model.chats[0].gone.wait(), 10)

    await keyboard.press("Shift+Tab")
    await expect(tab.button("Ask again")).to_be_focused()
    model.answer = saying("All of it.")
    await keyboard.press("Enter")
    await expect(tab.answer).to_have_text("All of it.")
    await page.locator("summary").focus()
    await keyboard.press("Enter")
    await expect(page.get_by_text("SQLite keeps messages in one file.")).to_be_visible()


async def test_the_focus_is_never_lost(tab: Tab, model: Upstream) -> None:
    await tab.page.get_by_role("button", name="What is it?").focus()
    model.answer, turns = slowly("Half", " and half.")
    await tab.page.keyboard.press("Enter")
    turns.put_nowait(None)
    await expect(tab.answer).to_have_text("Half")
    await expect(tab.field).to_be_focused()
    await tab.button("Stop").focus()
    turns.put_nowait(None)
    turns.put_nowait(None)
    await expect(tab.ending).to_contain_text("tokens")
    await expect(tab.field).to_be_focused()


async def test_a_screen_reader_hears_paragraphs_not_tokens(tab: Tab, model: Upstream) -> None:
    await tab.page.evaluate("""() => {
      window.said = [];
      const region = document.querySelector("[role=log][aria-live=polite]");
      new MutationObserver((changes) => changes.forEach((change) =>
        change.addedNodes.forEach((node) => window.said.push(node.textContent)))).observe(region, {childList: true});
    }""")
    model.answer = saying("The ", "first ", "one.\n\n", "```sh\n", "make\n", "run\n```\n\n", "- a\n", "- b")
    await tab.ask("How?")
    await expect(tab.ending).to_be_visible()
    said = await tab.page.evaluate("window.said")
    assert said == ["Searching the memory", "The first one.", "Code, sh, 2 lines", "a\nb", "The answer is complete"]
    # The answer itself is in no live region: its tokens are not read out.
    assert await tab.answer.evaluate("element => element.closest('[aria-live], [role=log], [role=status]')") is None
    headings = await tab.page.get_by_role("heading").all_text_contents()
    assert headings == ["chat-grpc", "You", "Answer"]


@pytest.mark.parametrize("width", [320, 360, 390, 768, 1280])
async def test_no_width_scrolls_sideways(open_tab: OpenTab, site: Site, model: Upstream, width: int) -> None:
    wide = "\n\n".join(
        [RICH, "x" * 500, "`" + "y" * 500 + "`", "https://example.org/" + "z" * 300, "|a|b|c|\n|-|-|-|\n" * 1]
    )
    model.answer = saying(f"{wide}\n\n|{'|'.join('abcdefgh')}|\n|{'-|' * 8}\n|{'long word |' * 8}\n")
    async with open_tab(site, viewport={"width": width, "height": 740}) as tab:
        overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        for _ in range(2):
            assert await tab.page.evaluate(overflow) == 0
            await tab.ask("q" * 300)
            await expect(tab.ending).to_be_visible()
        assert await tab.page.evaluate(overflow) == 0
        await expect(tab.field).to_be_in_viewport(ratio=1)
        box = await tab.button("Send").bounding_box()
        assert box is not None
        assert box["x"] + box["width"] <= width


async def test_the_colours_follow_the_system_until_chosen(open_tab: OpenTab, site: Site) -> None:
    background = "getComputedStyle(document.documentElement).backgroundColor"
    async with open_tab(site, color_scheme="dark") as tab:
        dark = await tab.page.evaluate(background)
        await tab.page.emulate_media(color_scheme="light")
        light = await tab.page.evaluate(background)
        assert dark != light
        for name, colour in (("light", light), ("dark", dark)):
            await tab.page.get_by_role("button", name="Colours").click()
            await expect(tab.button(f"Colours: {name}")).to_be_visible()
            await tab.page.emulate_media(color_scheme="light" if name == "dark" else "dark")
            assert await tab.page.evaluate(background) == colour
        await tab.page.reload()
        assert await tab.page.evaluate(background) == dark
        await tab.page.get_by_role("button", name="Colours").click()
        assert await tab.page.evaluate(background) == light  # the system's again


async def test_nothing_moves_for_those_who_ask_for_that(open_tab: OpenTab, site: Site, model: Upstream) -> None:
    model.answer, turns = slowly("Half")
    async with open_tab(site, reduced_motion="reduce") as tab:
        await tab.ask("How?")
        turns.put_nowait(None)
        await expect(tab.answer).to_have_text("Half")
        assert await tab.page.evaluate("document.getAnimations().length") == 0
    async with open_tab(site, reduced_motion="no-preference") as tab:
        await tab.ask("How?")
        await expect(tab.page.locator(".waiting")).to_be_visible()
        assert await tab.page.evaluate("document.getAnimations().length") > 0
