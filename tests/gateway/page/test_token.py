"""The chat page where the server asks who calls."""

from __future__ import annotations

import pytest
from playwright.async_api import expect

from chat_grpc._gen.chat.v1 import history_pb2
from tests.gateway.page.conftest import OpenTab, Site, StartSite
from tests.support.tokens import JWT, bearer, token

pytestmark = pytest.mark.e2e

REFUSED = ("status of 401", "status of 403")


async def test_the_page_asks_for_a_token_and_keeps_it_for_the_tab(open_tab: OpenTab, start_site: StartSite) -> None:
    async with start_site(**JWT) as site, open_tab(site) as tab:
        tab.expected = REFUSED
        dialog = tab.page.get_by_role("dialog", name="This server asks who you are")
        await expect(dialog).to_have_count(1)
        field = tab.page.get_by_label("Token or API key")
        await expect(field).to_be_focused()
        await field.fill("wrong")
        await field.press("Enter")
        await expect(dialog).to_have_count(0)
        # What was wrong is asked for again, by the next request.
        await tab.ask("How?")
        again = tab.page.get_by_role("dialog", name="The token is not taken any more")
        await expect(again).to_have_count(1)
        await tab.page.get_by_label("Token or API key").fill(token())
        await tab.button("Go on").click()
        await expect(tab.answer).to_have_text("Hello there.")
        assert [message.user_id for message in await _kept(site)] == ["ada"]
        await tab.page.reload()
        await expect(tab.answer).to_have_text("Hello there.")
        await expect(tab.page.get_by_role("dialog")).to_have_count(0)
        assert token()[:20] not in await tab.page.evaluate("JSON.stringify(localStorage)")


async def test_who_gives_no_token_is_told_why_there_is_no_answer(open_tab: OpenTab, start_site: StartSite) -> None:
    async with start_site(**JWT) as site, open_tab(site) as tab:
        tab.expected = REFUSED
        await tab.button("Not now").click()
        await tab.ask("How?")
        await tab.page.get_by_label("Token or API key").press("Escape")
        await expect(tab.ending).to_contain_text("A token or an API key is needed")


async def _kept(site: Site) -> list[history_pb2.Message]:
    answer = await site.service.history.ListMessages(history_pb2.ListMessagesRequest(), metadata=bearer(token()))
    return list(answer.messages)
