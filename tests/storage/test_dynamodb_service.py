"""The whole server on a DynamoDB table, and two servers on one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest

from chat_grpc._gen.chat.v1 import history_pb2
from chat_grpc.storage.dynamodb.address import Address
from tests.cli.conftest import Cli, cli
from tests.storage.stores import Store, dynamodb_store
from tests.support.dynamodb_proxy import Proxy, proxy, throttle
from tests.support.fixtures import StartService
from tests.support.service import failure_of, text_of
from tests.support.upstream import Exchange, Upstream

__all__ = ["cli"]  # a fixture of the command line's tests


@pytest.fixture
async def between(dynamodb: Store) -> AsyncIterator[Proxy]:
    """A proxy in front of the server that ``dynamodb`` is a table of."""
    async with proxy(Address.parse(dynamodb.url).endpoint_url) as running:
        yield running


async def test_a_chat_is_one_write_before_the_model_is_called_and_one_after(
    start: StartService, model: Upstream, between: Proxy
) -> None:
    before_the_model: list[list[str]] = []
    answer = model.answer

    async def watched(exchange: Exchange) -> None:
        before_the_model.append(between.take_calls())
        await answer(exchange)

    model.answer = watched
    async with start(CHAT_DATABASE_URL=dynamodb_store("proxied", between.url).url) as service:
        between.take_calls()
        for question in ("One?", "Two?"):
            events = await service.ask(question, user_id="anna", request_id=question)
            assert text_of(events) == "Hello there."
            assert before_the_model.pop() == ["TransactWriteItems"]
            assert between.take_calls() == ["UpdateItem"]
        # What the cache holds is kept with its answer at once.
        await service.ask("Two?", user_id="anna")
        assert between.take_calls() == ["TransactWriteItems"]


async def test_throttling_is_unavailable_with_retry_info(start: StartService, model: Upstream, between: Proxy) -> None:
    async with start(CHAT_DATABASE_URL=dynamodb_store("proxied", between.url).url) as service:
        between.always = throttle
        failure = await service.fail("How?", user_id="anna")
        assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "STORAGE_UNAVAILABLE")
        assert failure.details["RetryInfo"].retry_delay.ToTimedelta().total_seconds() > 0
        assert not model.chats
        listing = service.history.ListMessages(history_pb2.ListMessagesRequest(user_id="anna"))
        assert (await failure_of(listing)).code is grpc.StatusCode.UNAVAILABLE
        between.always = None
        assert text_of(await service.ask("How?", user_id="anna")) == "Hello there."


async def test_a_session_and_its_pages_go_on_at_another_server(
    start: StartService, model: Upstream, dynamodb: Store
) -> None:
    async with start(CHAT_DATABASE_URL=dynamodb.url) as one, start(CHAT_DATABASE_URL=dynamodb.url) as other:
        events = await one.ask("First?", user_id="anna")
        session = events[0].started.session_id
        await other.ask("Second?", user_id="anna", session_id=session)
        assert "First?" in str(model.chats[-1].messages)
        page = await one.history.ListMessages(history_pb2.ListMessagesRequest(user_id="anna", page_size=1))
        assert [item.message for item in page.messages] == ["Second?"]
        asked = history_pb2.ListMessagesRequest(user_id="anna", page_size=1, page_token=page.next_page_token)
        assert [item.message for item in (await other.history.ListMessages(asked)).messages] == ["First?"]


async def test_two_servers_answer_a_named_request_once(start: StartService, model: Upstream, dynamodb: Store) -> None:
    async with start(CHAT_DATABASE_URL=dynamodb.url) as one, start(CHAT_DATABASE_URL=dynamodb.url) as other:
        await one.ask("How?", user_id="anna", request_id="r1")
        events = await other.ask("How?", user_id="anna", request_id="r1")
        assert text_of(events) == "Hello there."
        assert len(model.chats) == 1
        assert len(await one.messages(user_id="anna")) == 1


async def test_create_table(cli: Cli, dynamodb: Store) -> None:
    first = await cli("admin", "create-table", CHAT_DATABASE_URL=dynamodb.url)
    assert (first.code, first.stdout) == (0, "")
    assert first.stderr.endswith(": made\n")
    again = await cli("admin", "create-table", "--database", dynamodb.url)
    assert again.code == 0
    assert again.stderr.endswith(": is there already\n")
    for url, says in (("dynamodb://chat?create=maybe", "true or false"), ("sqlite:///x.db", "names no table")):
        done = await cli("admin", "create-table", "--database", url)
        assert done.code == 1
        assert says in done.stderr
    nowhere = await cli("admin", "create-table", "--database", "dynamodb://chat?endpoint_url=http://127.0.0.1:1")
    assert nowhere.code == 1
    assert len(nowhere.stderr.splitlines()) == 1
    assert "the DynamoDB table can't be used (it can't be reached" in nowhere.stderr


async def test_an_export_of_one_storage_is_imported_into_another(
    cli: Cli,
    dynamodb: Store,
    start: StartService,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("carried")
    async with start(CHAT_DATABASE_URL=dynamodb.url) as service:
        await asyncio.gather(*(service.ask(f"Number {number}?", user_id="anna") for number in range(5)))
        kept = await service.messages(user_id="anna")
    exported = await cli("admin", "export", str(folder / "all.jsonl"), "--database", dynamodb.url)
    assert exported.code == 0, exported.stderr
    sqlite = f"sqlite+aiosqlite:///{folder}/chat.db"
    imported = await cli("admin", "import", str(folder / "all.jsonl"), "--database", sqlite)
    assert imported.code == 0, imported.stderr
    async with start(CHAT_DATABASE_URL=sqlite) as service:
        assert await service.messages(user_id="anna") == kept
