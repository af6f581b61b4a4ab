"""The chat page in Chromium: a conversation, from the first word to the next visit."""

from __future__ import annotations

import asyncio
import re
from itertools import count

import pytest
from playwright.async_api import expect

from chat_grpc._gen.chat.v1 import history_pb2
from tests.gateway.page.conftest import OpenTab, Site, StartSite, Tab
from tests.support.memvid import Memvid
from tests.support.upstream import Answer, Exchange, Upstream, saying

pytestmark = pytest.mark.e2e

Message = history_pb2.Message


def slowly(*pieces: str) -> tuple[Answer, asyncio.Queue[None]]:
    """An answer that says the next piece each time that the queue is told to, and then ends."""
    turns: asyncio.Queue[None] = asyncio.Queue()

    async def answer(exchange: Exchange) -> None:
        await exchange.start()
        for piece in pieces:
            await turns.get()
            await exchange.text(piece)
        await turns.get()
        await exchange.finish()

    return answer, turns


async def stall(exchange: Exchange) -> None:
    await exchange.start()
    await exchange.text("**Half** an ans")
    await exchange.gone.wait()


async def test_an_answer_grows_while_it_is_written(tab: Tab, model: Upstream) -> None:
    model.answer, turns = slowly("Set ", "the **URL** ", "first.\n\nThen", " start it.")
    await tab.ask("How do I keep messages?")
    await expect(tab.page.get_by_text("Reading what was found")).to_be_visible()
    seen = ["Set", "Set the URL", "Set the URL first.Then", "Set the URL first.Then start it."]
    for text in seen:
        turns.put_nowait(None)
        # The next piece is not sent before this one is on the page.
        await expect(tab.answer).to_have_text(text)
        await expect(tab.button("Stop")).to_be_visible()
    turns.put_nowait(None)
    await expect(tab.ending).to_contain_text("local/test-model · 10 tokens")
    await expect(tab.button("Send")).to_be_visible()
    await expect(tab.answer.locator("strong")).to_have_text("URL")
    await expect(tab.answer.locator("p")).to_have_text(["Set the URL first.", "Then start it."])


async def test_the_passages_are_shown_with_their_scores(tab: Tab) -> None:
    await tab.ask("How?")
    summary = tab.page.locator("summary")
    await expect(summary).to_contain_text("2 passages")
    await expect(summary).to_contain_text("DynamoDB")
    await expect(summary).to_contain_text("0.90")
    text = tab.page.get_by_text("SQLite keeps messages in one file.")
    await expect(text).to_be_hidden()
    await summary.click()
    await expect(text).to_be_visible()
    await expect(tab.page.locator(".passage-title").last).to_contain_text("Storage › SQLite")
    await expect(tab.page.locator(".passage-title").last).to_contain_text("0.80")


@pytest.mark.parametrize("by", ["button", "key"])
async def test_stop_ends_the_upstream_request(tab: Tab, site: Site, model: Upstream, by: str) -> None:
    model.answer = stall
    await tab.ask("Never mind")
    await expect(tab.answer).to_have_text("Half an ans")
    await (tab.button("Stop").click() if by == "button" else tab.page.keyboard.press("Escape"))
    exchange = await model.next_chat()
    await asyncio.wait_for(exchange.gone.wait(), 10)
    await expect(tab.ending).to_contain_text("Stopped. This is what had been written.")
    await expect(tab.answer).to_have_text("Half an ans")
    await expect(tab.button("Send")).to_be_visible()
    await expect(tab.field).to_be_focused()
    # The same is told by the history.
    await tab.page.reload()
    await expect(tab.ending).to_contain_text("Stopped. This is what had been written.")
    await expect(tab.answer.locator("strong")).to_have_text("Half")
    model.answer = saying("The whole answer.")
    await tab.button("Ask again").click()
    await expect(tab.answer).to_have_text("The whole answer.")
    await expect(tab.page.locator(".turn")).to_have_count(1)


@pytest.mark.parametrize("leave", ["close", "reload", "go"])
async def test_a_tab_that_leaves_ends_the_upstream_request(tab: Tab, model: Upstream, leave: str) -> None:
    model.answer = stall
    await tab.ask("Never mind")
    await expect(tab.answer).to_have_text("Half an ans")
    if leave == "close":
        await tab.page.close()
    elif leave == "reload":
        await tab.page.reload()
    else:
        await tab.page.goto("data:text/plain,elsewhere")
    exchange = await model.next_chat()
    await asyncio.wait_for(exchange.gone.wait(), 10)
    if leave == "reload":
        # It may have been looked up before the server knew that the reader had left.
        await expect(tab.ending).to_contain_text("Stopped. This is what had been written.")


async def test_a_reload_finds_the_conversation_and_goes_on_with_it(tab: Tab, model: Upstream) -> None:
    await tab.ask("How do I begin?")
    await expect(tab.ending).to_be_visible()
    await tab.page.reload()
    await expect(tab.page.locator(".question")).to_have_text("How do I begin?")
    await expect(tab.answer).to_have_text("Hello there.")
    await expect(tab.page.locator("summary")).to_contain_text("2 passages")
    await expect(tab.ending).to_contain_text("local/test-model · 10 tokens")
    await expect(tab.page).to_have_title("How do I begin? · chat-grpc")

    await tab.ask("And then?")
    await expect(tab.page.locator(".ending")).to_have_count(2)
    said = [
        (message["role"], message["content"]) for message in model.chats[-1].messages if message["role"] != "system"
    ]
    assert ("assistant", "Hello there.") in said
    assert "How do I begin?" in said[0][1]

    await tab.button("New conversation").click()
    await expect(tab.page.get_by_role("heading", name="What would you like to know?")).to_be_visible()
    await expect(tab.page.locator(".turn")).to_have_count(0)
    await tab.page.reload()
    await expect(tab.page.get_by_role("heading", name="What would you like to know?")).to_be_visible()
    await tab.ask("Who are you?")
    await expect(tab.ending).to_be_visible()
    assert "How do I begin?" not in str(model.chats[-1].messages)


async def test_earlier_messages_are_loaded_when_asked_for(open_tab: OpenTab, start_site: StartSite) -> None:
    async with start_site() as site:
        first, *_ = await site.service.ask("Question 1")
        session = first.started.session_id
        for number in range(2, 26):
            await site.service.ask(f"Question {number}", session_id=session)
        async with open_tab(site) as tab:
            await tab.page.evaluate("id => localStorage.setItem('chat-grpc.session', id)", session)
            await tab.page.reload()
            questions = tab.page.locator(".question")
            await expect(questions).to_have_text([f"Question {number}" for number in range(6, 26)])
            await tab.button("Show earlier messages").click()
            await expect(questions).to_have_text([f"Question {number}" for number in range(1, 26)])
            await expect(tab.button("Show earlier messages")).to_be_hidden()


async def test_a_conversation_that_ended_is_followed_by_a_new_one(tab: Tab, site: Site) -> None:
    tab.expected = ("404",)
    await tab.ask("How?")
    await expect(tab.ending).to_be_visible()
    session = await tab.page.evaluate("localStorage.getItem('chat-grpc.session')")
    await site.service.history.DeleteMessages(history_pb2.DeleteMessagesRequest(session_id=session))
    await tab.ask("And then?")
    await expect(tab.page.get_by_text("The conversation above had ended.")).to_be_visible()
    await expect(tab.page.locator(".ending")).to_have_count(2)
    assert await tab.page.evaluate("localStorage.getItem('chat-grpc.session')") != session
    # One that nobody knows any more is not missed either.
    await tab.page.evaluate("id => localStorage.setItem('chat-grpc.session', id)", session)
    await tab.page.reload()
    await expect(tab.page.get_by_role("heading", name="What would you like to know?")).to_be_visible()


async def test_a_suggested_question_is_asked_by_a_click(tab: Tab) -> None:
    await tab.page.get_by_role("button", name="What is it?").click()
    await expect(tab.page.locator(".question")).to_have_text("What is it?")
    await expect(tab.ending).to_be_visible()


async def test_a_memory_without_a_profile_suggests_nothing(
    open_tab: OpenTab, start_site: StartSite, memory: Memvid
) -> None:
    memory.profile = None
    async with start_site() as site, open_tab(site) as tab:
        tab.expected = ("404",)
        await expect(tab.page.get_by_text("a memory of 2 passages")).to_be_visible()
        await expect(tab.page.locator("#suggestions")).to_be_hidden()


async def cut(exchange: Exchange) -> None:
    await exchange.start()
    await exchange.text("Half an ans")
    await asyncio.sleep(0.05)
    exchange.close()


async def refuse(exchange: Exchange) -> None:
    await exchange.refuse(503)


@pytest.mark.parametrize(
    ("answer", "text", "words", "kept"),
    [
        (cut, "Half an ans", "The answer broke off.", "Cut off"),
        (refuse, "", "", "No answer was written"),
    ],
    ids=["mid-stream", "before-text"],
)
async def test_a_failure_is_said_in_words_and_asked_again(
    open_tab: OpenTab, start_site: StartSite, model: Upstream, answer: Answer, text: str, words: str, kept: str
) -> None:
    model.answer = answer
    async with start_site(CHAT_LLM_RETRIES="0", CHAT_LLM_BREAKER_FAILURES="1000") as site, open_tab(site) as tab:
        await tab.ask("How?")
        problem = tab.page.get_by_role("alert")
        await expect(problem).to_contain_text(words)
        await expect(problem).to_contain_text("Request")
        await expect(problem).not_to_contain_text("SECRET")
        await expect(tab.answer).to_have_text(text)
        # The page tells a failure from a whole answer after a reload, too.
        await tab.page.reload()
        await expect(tab.ending).to_contain_text(kept)
        model.answer = saying("All of it.")
        await tab.button("Ask again").click()
        await expect(tab.answer).to_have_text("All of it.")
        await expect(tab.page.locator(".turn")).to_have_count(1)
        await tab.page.reload()
        await expect(tab.answer).to_have_text("All of it.")
        await expect(tab.page.locator(".turn")).to_have_count(1)


async def test_try_again_is_held_back_for_as_long_as_the_server_asks(open_tab: OpenTab, start_site: StartSite) -> None:
    async with start_site(CHAT_REST_RATE_LIMIT="1/minute") as site, open_tab(site) as tab:
        tab.expected = ("429",)
        # The clock of the page is the test's: a minute passes when it says so.
        await tab.page.clock.install()
        await tab.page.reload()
        await tab.ask("One?")
        await expect(tab.ending).to_contain_text("tokens")
        await tab.ask("Two?")
        again = tab.page.get_by_role("button", name=re.compile(r"Try again in \d+ s"))
        await expect(again).to_be_disabled()
        await tab.page.clock.run_for(70_000)
        await expect(tab.button("Try again")).to_be_enabled()


async def test_a_server_that_is_gone_is_said_in_words(tab: Tab, model: Upstream) -> None:
    tab.expected = ("net::ERR_INTERNET_DISCONNECTED",)
    await tab.context.set_offline(offline=True)
    await tab.ask("Is anybody there?")
    await expect(tab.page.get_by_role("alert")).to_contain_text("The connection to the server was lost")
    await tab.context.set_offline(offline=False)
    await tab.button("Try again").click()
    await expect(tab.answer).to_have_text("Hello there.")
    assert len(model.chats) == 1


async def test_how_an_answer_ended_is_told_truthfully(
    open_tab: OpenTab, start_site: StartSite, model: Upstream
) -> None:
    async with start_site() as site, open_tab(site) as tab:
        await tab.ask("How?")
        await expect(tab.ending).to_contain_text("10 tokens")
        await expect(tab.ending).not_to_contain_text("cache")
        await tab.button("New conversation").click()
        await tab.ask("How?")
        await expect(tab.ending).to_contain_text("From the cache")
        model.answer = saying("A long story", reason="length")
        await tab.ask("Tell me more")
        await expect(tab.ending).to_contain_text("Cut off, because the answer reached its greatest length.")
        await tab.page.reload()
        await expect(tab.ending).to_contain_text("Cut off, because the answer reached its greatest length.")
        await expect(tab.page.locator(".ending").first).to_contain_text("From the cache")


async def test_an_answer_without_the_memory_says_so(open_tab: OpenTab, start_site: StartSite, model: Upstream) -> None:
    async with start_site(CHAT_MEMVID_GRPC_URL="127.0.0.1:9", CHAT_MEMVID_TIMEOUT="1") as site, open_tab(site) as tab:
        tab.expected = ("503",)  # the suggested questions
        await tab.ask("How?")
        await expect(tab.ending).to_contain_text("Written without the memory, which could not be reached")


async def test_an_answer_is_copied_as_it_was_written(tab: Tab, model: Upstream) -> None:
    model.answer = saying("Run **this**:\n\n```sh\nmake\trun\n```\n")
    await tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await tab.ask("How?")
    await expect(tab.ending).to_be_visible()
    await tab.answer.get_by_role("button", name="Copy").click()
    await expect(tab.answer.get_by_role("button")).to_have_text("Copied")
    assert await tab.page.evaluate("navigator.clipboard.readText()") == "make\trun"
    await tab.ending.get_by_role("button", name="Copy").click()
    assert await tab.page.evaluate("navigator.clipboard.readText()") == "Run **this**:\n\n```sh\nmake\trun\n```\n"


async def test_a_message_that_is_too_long_is_not_sent(tab: Tab, model: Upstream) -> None:
    await tab.ask("x" * 2_001)
    await expect(tab.page.get_by_text("1 character too many")).to_be_visible()
    await expect(tab.button("Send")).to_be_disabled()
    await tab.ask("🙂" * 1_200)  # characters, not the units that JavaScript counts in
    await expect(tab.ending).to_be_visible()
    assert len(model.chats) == 1


async def test_a_message_that_is_not_taken_can_be_edited(open_tab: OpenTab, start_site: StartSite) -> None:
    async with start_site(CHAT_LLM_CONTEXT="1024") as site, open_tab(site) as tab:
        tab.expected = ("400",)
        await tab.ask("🙂" * 1_990)
        await expect(tab.page.get_by_role("alert")).to_contain_text("shorten it")
        await tab.button("Edit the question").click()
        await expect(tab.field).to_have_value("🙂" * 1_990)
        await expect(tab.field).to_be_focused()
        await expect(tab.page.locator(".turn")).to_have_count(0)


async def test_the_reader_may_look_elsewhere_while_it_grows(tab: Tab, model: Upstream) -> None:
    long = "\n\n".join(f"Paragraph {number}." for number in range(60))
    model.answer, turns = slowly(long, "\n\nThe end.")
    await tab.ask("Tell me a lot")
    turns.put_nowait(None)
    await expect(tab.answer).to_contain_text("Paragraph 59.")
    bottom = "scrollY + innerHeight >= document.documentElement.scrollHeight - 64"
    await tab.page.wait_for_function(bottom)
    await tab.page.evaluate("scrollTo(0, 100)")
    latest = tab.button("Go to the end of the conversation")
    await expect(latest).to_be_visible()
    turns.put_nowait(None)
    await expect(tab.answer).to_contain_text("The end.")
    assert await tab.page.evaluate("scrollY") == 100
    await latest.click()
    await tab.page.wait_for_function(bottom)
    turns.put_nowait(None)
    await expect(tab.ending).to_be_visible()
    await tab.page.wait_for_function(bottom)


async def test_what_is_done_is_not_drawn_again(tab: Tab, model: Upstream) -> None:
    """A selection in what is there stays, whatever arrives after it."""
    pieces = [f"word{number} " for number in range(5)]
    model.answer, turns = slowly("First paragraph.\n\n- one\n- two", *pieces)
    await tab.ask("How?")
    turns.put_nowait(None)
    await expect(tab.answer).to_contain_text("two")
    await tab.page.evaluate("""() => {
      const item = document.querySelector(".prose li");
      getSelection().selectAllChildren(item);
      window.kept = [document.querySelector(".prose p"), item];
    }""")
    for number in count():
        turns.put_nowait(None)
        if number == len(pieces):
            break
        await expect(tab.answer).to_contain_text(f"word{number}")
    await expect(tab.ending).to_be_visible()
    assert await tab.page.evaluate("getSelection().toString()") == "one"
    assert await tab.page.evaluate("window.kept.every((element) => element.isConnected)")
