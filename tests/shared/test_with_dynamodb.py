"""Servers that share a Redis and a DynamoDB table: what a message costs, and who may go on with whose session."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest

from chat_grpc._gen.chat.v1 import chat_pb2
from chat_grpc.shared.link import Link
from chat_grpc.storage.dynamodb.address import Address
from tests.shared.conftest import other_questions, script_runs
from tests.storage.conftest import dynamodb, dynamodb_local_url, moto_url
from tests.storage.stores import Store, dynamodb_store
from tests.support.dynamodb_proxy import Proxy as TableProxy
from tests.support.dynamodb_proxy import proxy as table_proxy
from tests.support.fixtures import StartService
from tests.support.redis import Proxy, RedisServer
from tests.support.service import Service, failure_of, text_of
from tests.support.tokens import JWT, bearer, token
from tests.support.upstream import Exchange, Upstream

__all__ = ["dynamodb", "dynamodb_local_url", "moto_url"]  # fixtures of the storage's tests


@pytest.fixture
async def table(dynamodb: Store) -> AsyncIterator[TableProxy]:
    """A network before DynamoDB."""
    async with table_proxy(Address.parse(dynamodb.url).endpoint_url) as running:
        yield running


@pytest.fixture
async def pair(start: StartService, redis: RedisServer, dynamodb: Store) -> AsyncIterator[tuple[Service, Service]]:
    """Two servers on one Redis and one table, whose callers show tokens."""
    settings = {"CHAT_REDIS_URL": redis.url, "CHAT_DATABASE_URL": dynamodb.url, **JWT}
    async with AsyncExitStack() as stack:
        one, other = [await stack.enter_async_context(start(**settings)) for _ in range(2)]
        yield one, other


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers that wait for Redis longer than a busy machine may stand still, and count on it meanwhile."""
    defaults = Link.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "timeout", 10.0)


@pytest.mark.usefixtures("patient")
async def test_the_round_trips_of_a_message(
    start: StartService, model: Upstream, network: Proxy, table: TableProxy
) -> None:
    """Before the model is asked: one question to Redis and one write; after: one word and one write."""
    before: list[tuple[int, list[str]]] = []
    answer = model.answer

    async def watched(exchange: Exchange) -> None:
        before.append((script_runs(network), table.take_calls()))
        network.trips.clear()
        await answer(exchange)

    model.answer = watched
    settings = {"CHAT_REDIS_URL": network.url, "CHAT_DATABASE_URL": dynamodb_store("proxied", table.url).url}
    async with start(**settings) as one, start(**settings) as other:
        session = ""
        for service in (one, other):  # they connect, and Redis learns the scripts
            session = (await service.ask(f"Warm up {service.address}?"))[0].started.session_id
        kinds: tuple[tuple[str, dict[str, Any]], ...] = (
            ("PutItem", {}),
            ("PutItem", {"session_id": session}),
            ("TransactWriteItems", {"user_id": "anna"}),
            ("TransactWriteItems", {"user_id": "anna", "request_id": "named"}),
        )
        for write, fields in kinds:
            for number, service in enumerate((one, other)):
                before.clear()
                table.take_calls()
                network.trips.clear()
                named = {"request_id": f"named{number}"} if "request_id" in fields else {}
                events = await service.ask(f"New {number} {sorted(fields)}?", **{**fields, **named})
                assert text_of(events) == "Hello there."
                assert before == [(1, [write])]
                assert (script_runs(network), table.take_calls()) == (1, ["UpdateItem"])
                assert other_questions(network) == []
        # What the cache holds is kept with its answer at once, whichever server wrote it.
        network.trips.clear()
        assert (await other.ask("New 0 []?"))[-1].completed.cached
        assert (script_runs(network), table.take_calls()) == (2, ["PutItem"])


async def ask(service: Service, user: str, message: str, **fields: Any) -> list[chat_pb2.ChatResponse]:
    call = service.chat.Chat(chat_pb2.ChatRequest(message=message, **fields), metadata=bearer(token(user)))
    return [event async for event in call]


async def test_a_session_is_its_users_on_every_server(
    pair: tuple[Service, Service], redis: RedisServer, model: Upstream
) -> None:
    one, other = pair
    session = (await ask(one, "ada", "First?"))[0].started.session_id
    for forgotten in (False, True):
        if forgotten:  # then it is read from the table
            redis.client.flushall()
        for service in pair:
            theirs = chat_pb2.ChatRequest(message="What was said?", session_id=session)
            failure = await failure_of(service.chat.Chat(theirs, metadata=bearer(token("bob"))))
            assert (failure.code, failure.reason) == (grpc.StatusCode.PERMISSION_DENIED, "SESSION_OF_ANOTHER_USER")
    await ask(other, "ada", "Second?", session_id=session)
    assert [turn["content"] for turn in model.chats[-1].messages if turn["role"] == "user"] == ["First?", "Second?"]
    assert len(model.chats) == 2
