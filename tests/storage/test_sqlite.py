"""The history in SQLite: what it keeps, and what it does when the disk will not."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

from chat_grpc.domain import FinishReason, Message, Part, Status, Usage
from chat_grpc.errors import StorageUnavailable
from chat_grpc.storage import Cursor, Scope
from chat_grpc.storage.migrate import FOLDER, migrate
from chat_grpc.storage.sqlite import CHECKPOINT_PAGES, SQLiteStorage

T0 = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
SESSION = "0b9d6b1c-9b1d-4f6c-8a58-0d9b3d5b6f00"


def message(number: int, **fields: object) -> Message:
    values = {
        "id": f"msg_{number:04}",
        "user_id": "anna",
        "session_id": SESSION,
        "request_id": f"r{number}",
        "message": f"question {number}",
        "created_at": T0 + timedelta(microseconds=number),
    }
    return Message(**{**values, **fields})  # type: ignore[arg-type]  # fields are of mixed types


@pytest.fixture
async def storage(tmp_path: Path) -> AsyncIterator[SQLiteStorage]:
    opened = await SQLiteStorage.open(tmp_path / "new" / "chat.db")
    yield opened
    await opened.close()


async def test_keeps_every_field(storage: SQLiteStorage) -> None:
    pending = message(1)
    await storage.add(pending)
    assert await storage.list_messages(Scope(user_id="anna"), limit=10) == [pending]
    settled = replace(
        pending,
        answer="an answer",
        status=Status.COMPLETED,
        finish_reason=FinishReason.LENGTH,
        model="local/m",
        usage=Usage(1, 2, 3, 0.004, estimated=True),
        completed_at=T0 + timedelta(seconds=1, microseconds=1),
        cached=True,
        degraded=(Part.RETRIEVAL, Part.LLM),
    )
    await storage.settle(settled)
    assert await storage.list_messages(Scope(session_id=SESSION), limit=10) == [settled]


async def test_pages_newest_first_without_gap_or_repeat(storage: SQLiteStorage) -> None:
    for number in range(25):
        # Every three messages share a time, so that the id has to decide.
        await storage.add(message(number, created_at=T0 + timedelta(microseconds=number // 3)))
    seen: list[str] = []
    before = None
    while page := await storage.list_messages(Scope(user_id="anna"), limit=4, before=before):
        seen += [item.id for item in page]
        before = Cursor(page[-1].created_at, page[-1].id)
    assert seen == [f"msg_{number:04}" for number in reversed(range(25))]


async def test_nobody_is_not_a_user(storage: SQLiteStorage) -> None:
    await storage.add(message(1, user_id=""))
    assert await storage.list_messages(Scope(user_id=""), limit=10) == []


async def test_deletes_what_the_scope_names_and_settling_does_not_bring_it_back(storage: SQLiteStorage) -> None:
    await storage.add(message(1))
    await storage.add(message(2))
    await storage.add(message(3, user_id="bert"))
    assert await storage.delete_messages(Scope(user_id="anna")) == 2
    await storage.settle(replace(message(1), status=Status.COMPLETED, answer="late"))
    assert await storage.list_messages(Scope(user_id="anna"), limit=10) == []
    assert [item.id for item in await storage.list_messages(Scope(user_id="bert"), limit=10)] == ["msg_0003"]
    assert await storage.delete_messages(Scope(user_id="anna")) == 0


async def test_what_a_dead_server_left_pending_is_interrupted_at_the_next_start(tmp_path: Path) -> None:
    first = await SQLiteStorage.open(tmp_path / "chat.db")
    await first.add(message(1))
    await first.add(message(2, status=Status.COMPLETED))
    await first.close()
    second = await SQLiteStorage.open(tmp_path / "chat.db")
    newest, oldest = await second.list_messages(Scope(user_id="anna"), limit=10)
    assert newest.status is Status.COMPLETED
    assert oldest.status is Status.INTERRUPTED
    assert oldest.error_reason == "SERVER_DIED"
    assert oldest.completed_at is not None
    await second.close()


async def test_what_another_server_is_answering_is_left_alone(tmp_path: Path) -> None:
    living = await SQLiteStorage.open(tmp_path / "chat.db")
    dying = await SQLiteStorage.open(tmp_path / "chat.db")
    await living.add(message(1))
    await dying.add(message(2))
    await dying.close()  # what it was answering stays pending, as when it is killed
    third = await SQLiteStorage.open(tmp_path / "chat.db")
    newest, oldest = await third.list_messages(Scope(user_id="anna"), limit=10)
    assert (newest.status, newest.error_reason) == (Status.INTERRUPTED, "SERVER_DIED")
    assert oldest.status is Status.PENDING
    await third.add(message(3))
    await living.close()
    fourth = await SQLiteStorage.open(tmp_path / "chat.db")
    statuses = [item.status for item in await fourth.list_messages(Scope(user_id="anna"), limit=10)]
    assert statuses == [Status.PENDING, Status.INTERRUPTED, Status.INTERRUPTED]
    await third.close()
    await fourth.close()


async def test_what_was_imported_as_pending_belongs_to_nobody(tmp_path: Path) -> None:
    first = await SQLiteStorage.open(tmp_path / "chat.db")
    await first.put([message(1)])
    second = await SQLiteStorage.open(tmp_path / "chat.db")
    [imported] = await first.list_messages(Scope(user_id="anna"), limit=10)
    assert imported.status is Status.INTERRUPTED
    await first.close()
    await second.close()


async def test_every_way_in_is_by_an_index_and_none_sorts(storage: SQLiteStorage) -> None:
    asked: list[str] = []
    await storage._reader.set_trace_callback(asked.append)  # the very statements, with their values in them
    await storage._writer.set_trace_callback(asked.append)
    before = Cursor(T0, "msg_0001")
    for scope in (Scope(user_id="anna"), Scope(session_id=SESSION)):
        await storage.list_messages(scope, limit=5)
        await storage.list_messages(scope, limit=5, before=before)
        await storage.delete_messages(scope)
    await storage.find_request("key")
    await storage.settle(message(1))
    await storage.scan("msg_0001", limit=5)
    await storage.expire(T0, limit=5)
    await storage.add(message(2))
    await storage._interrupt_pending()
    statements = [statement for statement in asked if " messages" in statement]
    assert len(statements) == 13
    indexes = set()
    for statement in statements:
        plan = [row[3] for row in await storage._reader.execute_fetchall(f"EXPLAIN QUERY PLAN {statement}")]
        # The index of pending messages holds no others, so all of it is what is looked for.
        found = ("SEARCH messages USING ", "SCAN messages USING INDEX messages_pending", "LIST SUBQUERY")
        assert [step for step in plan if not step.startswith(found)] == []
        indexes |= {name for step in plan for name in re.findall(r"INDEX (\w+)|(PRIMARY KEY)", step)}
    assert {name or key for name, key in indexes} == {
        "messages_by_user", "messages_by_session", "messages_by_request", "messages_pending", "PRIMARY KEY",
    }  # fmt: skip


async def test_scans_everything_in_one_order(storage: SQLiteStorage) -> None:
    messages = [message(number, created_at=T0 - timedelta(seconds=number)) for number in range(25)]
    for item in reversed(messages):
        await storage.add(item)
    seen, after, more = [], "", True
    while more:
        batch = await storage.scan(after, limit=5)
        seen += batch.messages
        after, more = batch.next, bool(batch.next)
    assert seen == messages
    assert await storage.count() == 25


async def test_puts_all_or_none_and_nothing_twice(storage: SQLiteStorage) -> None:
    kept = message(1, request_key="a", answer="kept", status=Status.COMPLETED)
    await storage.add(kept)
    assert await storage.put([message(1), message(2, request_key="a"), message(3, request_key="b"), message(3)]) == 2
    assert (await storage.scan(limit=10)).messages == [kept, message(2), message(3, request_key="b")]
    with pytest.raises(StorageUnavailable, match="a value is none that it can hold"):
        await storage.put([message(4), message(5, usage=Usage(2**63, 0, 0))])
    assert await storage.count() == 3
    assert await storage.put([]) == 0
    await storage.add(message(6))


async def test_full_synchronous_syncs_each_commit(tmp_path: Path) -> None:
    for setting, number in (("normal", 1), ("full", 2)):
        storage = await SQLiteStorage.open(tmp_path / f"{setting}.db", synchronous=setting)  # type: ignore[arg-type]  # it is one of the two
        assert list(await storage._writer.execute_fetchall("PRAGMA synchronous")) == [(number,)]
        assert list(await storage._writer.execute_fetchall("PRAGMA wal_autocheckpoint")) == [(CHECKPOINT_PAGES,)]
        await storage.close()


async def test_locked_by_another_process(storage: SQLiteStorage, tmp_path: Path) -> None:
    await storage._writer.execute("PRAGMA busy_timeout = 50")  # do not keep the test waiting
    other = sqlite3.connect(tmp_path / "new" / "chat.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageUnavailable, match="another process holds it"):
        await storage.add(message(1))
    with pytest.raises(StorageUnavailable):
        await storage.ping()
    other.execute("ROLLBACK")
    await storage.ping()
    assert await storage.list_messages(Scope(user_id="anna"), limit=10) == []
    await storage.add(message(1))
    other.close()


async def test_full_disk_keeps_no_half_row(storage: SQLiteStorage) -> None:
    [(pages,)] = await storage._writer.execute_fetchall("PRAGMA page_count")
    await storage._writer.execute(f"PRAGMA max_page_count = {pages + 2}")
    await storage.add(message(1))
    with pytest.raises(StorageUnavailable, match="the disk is full"):
        await storage.add(message(2, message="x" * 50_000))
    with pytest.raises(StorageUnavailable, match="the disk is full"):
        await storage.settle(replace(message(1), answer="x" * 50_000, status=Status.COMPLETED))
    assert await storage.list_messages(Scope(user_id="anna"), limit=10) == [message(1)]
    [(verdict,)] = await storage._writer.execute_fetchall("PRAGMA integrity_check")
    assert verdict == "ok"


async def test_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "chat.db").write_text("I am a shopping list, and longer than a header of SQLite would be." * 20)
    with pytest.raises(StorageUnavailable, match=r"not a database.*CHAT_DATABASE_URL"):
        await SQLiteStorage.open(tmp_path / "chat.db")


async def test_folder_that_can_not_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageUnavailable, match="CHAT_DATABASE_URL"):
        await SQLiteStorage.open(tmp_path / "file" / "chat.db")


async def test_database_of_a_newer_program(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "chat.db") as raw:
        raw.execute("PRAGMA user_version = 999")
    with pytest.raises(StorageUnavailable, match="newer chat-grpc"):
        await SQLiteStorage.open(tmp_path / "chat.db")


async def test_migrations_are_applied_once_and_in_order(storage: SQLiteStorage, tmp_path: Path) -> None:
    folder = tmp_path / "migrations"
    folder.mkdir()
    for path in FOLDER.glob("*.sql"):
        (folder / path.name).write_text(path.read_text())
    last = max(int(path.name[:4]) for path in FOLDER.glob("*.sql"))
    (folder / f"{last + 1:04}_more.sql").write_text("CREATE TABLE more (x INTEGER);")
    (folder / f"{last + 2:04}_even_more.sql").write_text("ALTER TABLE more ADD COLUMN y INTEGER;")
    assert await migrate(storage._writer, folder) == last + 2
    assert await migrate(storage._writer, folder) == last + 2
    await storage._writer.execute("INSERT INTO more (x, y) VALUES (1, 2)")


def test_migrations_are_numbered_without_gap() -> None:
    numbers = sorted(int(path.name.split("_")[0]) for path in FOLDER.glob("*.sql"))
    assert numbers == list(range(1, len(numbers) + 1))
