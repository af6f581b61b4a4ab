"""Retention: messages go when their days are over, from the history and from conversations that go on."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from chat_grpc.conversation.ids import new_message_id
from chat_grpc.conversation.sessions import Sessions
from chat_grpc.domain import Message, Status
from chat_grpc.errors import NotFound
from chat_grpc.storage import Cursor, Scope
from chat_grpc.storage.sqlite import EXPIRE, SQLiteStorage
from tests.support.fixtures import StartService
from tests.support.metrics import scrape, scrape_until
from tests.support.upstream import Upstream

DAY = 86_400.0


def old(days: float, **fields: str) -> Message:
    created = datetime.now(UTC) - timedelta(days=days)
    values = {"id": new_message_id(created), "user_id": "anna", "session_id": "s", "request_id": "r", "message": "q"}
    return Message(created_at=created, status=Status.COMPLETED, **{**values, **fields})  # type: ignore[arg-type]  # fields are texts


@pytest.fixture
async def storage(tmp_path: Path) -> AsyncIterator[SQLiteStorage]:
    opened = await SQLiteStorage.open(tmp_path / "chat.db")
    yield opened
    await opened.close()


async def test_messages_older_than_the_days_are_deleted_counted_and_no_others(
    start: StartService, storage: SQLiteStorage
) -> None:
    young = [old(0.5), old(0.9)]
    await storage.put([*young, *(old(1.1 + number) for number in range(250))])  # more than two batches
    async with start(CHAT_RETENTION_DAYS="1") as service:
        metrics = await scrape_until(service.channel, lambda now: now("chat_grpc_messages_expired_total") >= 250)
        assert metrics("chat_grpc_messages_expired_total") == 250
        assert [message.id for message in await service.messages(user_id="anna")] == [one.id for one in young]


async def test_by_default_messages_stay(start: StartService, storage: SQLiteStorage) -> None:
    await storage.put([old(30_000)])
    async with start() as service:
        await service.ask()
        await asyncio.sleep(0.2)  # as long as the first look would take
        assert len(await service.messages(user_id="anna")) == 1
        assert (await scrape(service.channel))("chat_grpc_messages_expired_total") == 0


async def test_a_conversation_forgets_what_has_gone(start: StartService, model: Upstream) -> None:
    async with start(CHAT_RETENTION_DAYS=str(1.0 / DAY)) as service:
        first = await service.ask("My name is Ada.", user_id="anna")
        session = first[0].started.session_id
        await scrape_until(service.channel, lambda now: now("chat_grpc_messages_expired_total") == 1)
        failed = await service.fail("What is my name?", user_id="anna", session_id=session)
        assert failed.reason == "SESSION_NOT_FOUND"
        assert await service.messages(user_id="anna") == []
    assert len(model.chats) == 1


async def test_a_conversation_goes_on_with_what_is_left(
    start: StartService, storage: SQLiteStorage, model: Upstream
) -> None:
    session = "0b9d6b1c-9b1d-4f6c-8a58-0d9b3d5b6f00"
    soon = 1.5 / DAY
    await storage.put(
        [
            old(soon, session_id=session, message="My name is Ada."),
            old(0, session_id=session, message="I live in London."),
        ]
    )
    async with start(CHAT_RETENTION_DAYS=str(3 / DAY)) as service:
        await service.ask("Where do I live?", user_id="anna", session_id=session)
        assert "My name is Ada." in str(model.chats[-1].messages)
        await scrape_until(service.channel, lambda now: now("chat_grpc_messages_expired_total") == 1)
        await service.ask("And my name?", user_id="anna", session_id=session)
    sent = str(model.chats[-1].messages)
    assert "My name is Ada." not in sent
    assert "I live in London." in sent


class Holding(SQLiteStorage):
    """A storage whose lists arrive when a test wants them to."""

    read = asyncio.Event()
    hold = asyncio.Event()

    async def list_messages(self, scope: Scope, *, limit: int, before: Cursor | None = None) -> list[Message]:
        messages = await super().list_messages(scope, limit=limit, before=before)
        self.read.set()
        await self.hold.wait()
        return messages


async def test_what_is_deleted_while_a_conversation_is_read_does_not_come_back(tmp_path: Path) -> None:
    storage = await Holding.open(tmp_path / "chat.db")
    assert isinstance(storage, Holding)
    sessions = Sessions(storage, ttl=60, turns=10)
    scope = Scope(session_id="s")
    await storage.put([old(0)])
    opening = asyncio.ensure_future(sessions.open("s", "anna"))
    await storage.read.wait()
    await storage.delete_messages(scope)
    sessions.forget(scope)
    storage.hold.set()
    with pytest.raises(NotFound):
        await opening
    await storage.close()


async def test_it_goes_on_after_the_database_was_locked(start: StartService, storage: SQLiteStorage) -> None:
    await storage.put([old(2)])
    [(path,)] = await storage._reader.execute_fetchall("SELECT file FROM pragma_database_list")
    other = sqlite3.connect(path, isolation_level=None)
    async with start(CHAT_RETENTION_DAYS=str(1.0 / DAY)) as service:
        other.execute("BEGIN IMMEDIATE")
        await asyncio.sleep(0.1)
        other.execute("ROLLBACK")
        other.close()
        await scrape_until(service.channel, lambda now: now("chat_grpc_messages_expired_total") == 1)


async def test_the_oldest_are_found_by_the_primary_key(storage: SQLiteStorage) -> None:
    plan = [row[3] for row in await storage._writer.execute_fetchall(f"EXPLAIN QUERY PLAN {EXPIRE}", ("x", 1, 10))]
    assert [step for step in plan if step.startswith("SCAN")] == []
    assert any("USING PRIMARY KEY (id<?)" in step for step in plan), plan


async def test_a_batch_is_bounded_and_tells_its_sessions(storage: SQLiteStorage) -> None:
    await storage.put([old(3, session_id="a"), old(2, session_id="b"), old(1, session_id="c")])
    expired = await storage.expire(datetime.now(UTC) - timedelta(days=1.5), limit=1)
    assert (expired.count, *expired.sessions) == (1, "a")
    expired = await storage.expire(datetime.now(UTC) - timedelta(days=1.5), limit=10)
    assert (expired.count, *expired.sessions) == (1, "b")
    expired = await storage.expire(datetime.now(UTC) - timedelta(days=1.5), limit=10)
    assert (expired.count, *expired.sessions) == (0,)
