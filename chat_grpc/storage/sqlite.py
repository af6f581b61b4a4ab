"""The history in one SQLite file."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import aiosqlite
import msgspec
from msgspec.structs import replace

from chat_grpc.domain import FinishReason, Message, Part, Passage, Status, Usage
from chat_grpc.errors import StorageUnavailable
from chat_grpc.storage import Batch, Cursor, Expired, Scope
from chat_grpc.storage.group_commit import Outcome, WritingConnection, rows_of
from chat_grpc.storage.migrate import migrate
from chat_grpc.storage.secret_file import read_or_make
from chat_grpc.storage.slots import NOBODY, Slot, held_if_free
from chat_grpc.telemetry import logs

log = logs.get(__name__)

BUSY_MILLISECONDS = 2000
"""How long a write waits for another process that holds the database."""

CHECKPOINT_PAGES = 4000
"""How long the log grows before it is written into the file, in pages of 4 KiB; docs/storage.md says why not SQLite's 1000."""
CACHE_KIBIBYTES = 8_000
"""How much of the file the connection that writes keeps in memory at most; docs/storage.md says why not SQLite's 2000."""
Synchronous = Literal["normal", "full"]
"""When what was kept reaches the disk: with the next checkpoint, or before ``add`` returns."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(tuple[Passage, ...]).decode

_NO_USAGE = (None,) * 5

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

COLUMNS = (
    "id", "user_id", "session_id", "request_id", "message", "answer", "status", "finish_reason", "error_reason",
    "model", "prompt_tokens", "completion_tokens", "total_tokens", "cost_usd", "estimated", "cached", "degraded",
    "passages", "created_at", "completed_at", "request_key", "request_digest",
)  # fmt: skip
SETTLED = (*COLUMNS[COLUMNS.index("answer") : COLUMNS.index("created_at")], "completed_at", "request_key")

# Only names of columns, written above, are put into these texts.
_INTO = f"INSERT INTO messages ({', '.join(COLUMNS)}, owner) VALUES ({', '.join('?' * len(COLUMNS))}, ?)"  # noqa: S608
INSERT = f"{_INTO} ON CONFLICT (request_key) WHERE request_key IS NOT NULL DO NOTHING"
INSERT_IF_NEW = f"{_INTO} ON CONFLICT (id) DO NOTHING"
SETTLE = f"UPDATE messages SET {', '.join(f'{column} = ?' for column in SETTLED)} WHERE id = ?"  # noqa: S608
SELECT = f"SELECT {', '.join(COLUMNS)} FROM messages"  # noqa: S608
SCAN = f"{SELECT} WHERE id > ? ORDER BY id LIMIT ?"
# Ids begin with the time, so the primary key finds the oldest; no index more has to be kept up for it.
OWNERS = "SELECT owner FROM messages WHERE status = 'pending'"
INTERRUPT = (
    "UPDATE messages SET status = ?, error_reason = 'SERVER_DIED', completed_at = ?, request_key = NULL "
    "WHERE status = 'pending' AND owner = ?"
)
EXPIRE = (
    "DELETE FROM messages WHERE id IN (SELECT id FROM messages WHERE id < ? AND created_at < ? ORDER BY id LIMIT ?) "
    "RETURNING session_id"
)


class SQLiteStorage:
    """A history in one file; ``open`` makes one.

    WAL lets readers go on while a message is written. What was kept survives
    the death of the process at any moment; whether a power cut may take the
    last messages is what ``synchronous`` says. What is written at the same
    time is committed together. A second connection reads, so that a long list
    does not stand in the way of an answer. Several servers of one machine may
    share the file.
    """

    def __init__(
        self, path: Path, writer: WritingConnection, reader: aiosqlite.Connection, slot: Slot | None = None
    ) -> None:
        self._path = path
        self._writer = writer
        self._reader = reader
        self._slot = slot
        self._owner = NOBODY if slot is None else slot.number

    @classmethod
    async def open(
        cls, path: Path, *, synchronous: Synchronous = "normal", serving: bool = True, create: bool = True
    ) -> SQLiteStorage:
        """Open the file, make it if need be, bring its schema up to date.

        Args:
            path: the file.
            synchronous: "full" syncs the log to the disk before a write returns, "normal" when the log is emptied.
            serving: whether this is a server; it marks what dead ones left unfinished.
            create: whether a file that is missing is made.

        Raises:
            StorageUnavailable: the file is missing, can't be made, or is no database of ours.
        """
        if not create and not await asyncio.to_thread(path.is_file):
            raise StorageUnavailable(f"there is no database {path}; check CHAT_DATABASE_URL")
        connections: list[aiosqlite.Connection] = []
        slot: Slot | None = None
        try:
            await asyncio.to_thread(path.parent.mkdir, parents=True, exist_ok=True)
            writer = WritingConnection(path)
            for connection in (writer, aiosqlite.connect(path, isolation_level=None)):
                connections.append(await connection)
                await connection.execute(f"PRAGMA busy_timeout = {BUSY_MILLISECONDS}")
                await connection.execute("PRAGMA journal_mode = WAL")
                await connection.execute(f"PRAGMA synchronous = {synchronous}")
                await connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
                if connection is writer:
                    await connection.execute(f"PRAGMA cache_size = -{CACHE_KIBIBYTES}")
                    await migrate(connection)
            if serving:
                slot = await asyncio.to_thread(Slot, path)
            storage = cls(path, writer, connections[1], slot)
            if serving:
                await storage._interrupt_pending()
        except BaseException as error:
            # The thread of a connection left open would keep the process alive.
            for connection in connections:
                await connection.close()
            if slot is not None:
                slot.close()
            if isinstance(error, OSError | sqlite3.Error):
                raise StorageUnavailable(
                    f"the database {path} can't be opened ({_cause(error)}); check CHAT_DATABASE_URL"
                ) from error
            raise
        return storage

    async def close(self) -> None:
        """Finish what was begun and close the file."""
        await self._writer.close()
        await self._reader.close()
        if self._slot is not None:
            self._slot.close()

    def add(self, message: Message) -> Awaitable[bool]:
        """Insert the row; see Storage."""
        try:  # and no _Guard, which takes three calls, here where every message passes
            return self._writer.write(INSERT, (*_row(message), self._owner), _is_kept)
        except FAULTS as error:
            raise _unavailable("keep a message", error) from error

    async def find_request(self, request_key: str) -> Message | None:
        """Read the row by its index; see Storage."""
        with _Guard("read a message"):
            rows = await self._reader.execute_fetchall(f"{SELECT} WHERE request_key = ?", (request_key,))
        return next(map(_message, rows), None)

    def settle(self, message: Message) -> Awaitable[None]:
        """Update the row; see Storage."""
        try:
            key = message.request_key if message.status is Status.COMPLETED else ""
            ended = message.completed_at
            row = (*_ending(message), None if ended is None else _micros(ended), key or None, message.id)
            return self._writer.write(SETTLE, row, _is_settled)
        except FAULTS as error:
            raise _unavailable("keep an answer", error) from error

    async def list_messages(self, scope: Scope, *, limit: int, before: Cursor | None = None) -> list[Message]:
        """Read one page by the index of the scope; see Storage."""
        where, values = _where(scope)
        if before is not None:
            where += " AND (created_at, id) < (?, ?)"
            values += (_micros(before.created_at), before.id)
        query = f"{SELECT} WHERE {where} ORDER BY created_at DESC, id DESC LIMIT ?"
        with _Guard("read messages"):
            rows = await self._reader.execute_fetchall(query, (*values, limit))
        return [_message(row) for row in rows]

    async def delete_messages(self, scope: Scope) -> int:
        """Delete the rows of the scope; see Storage."""
        where, values = _where(scope)
        with _Guard("delete messages"):
            cursor = await self._writer.execute(f"DELETE FROM messages WHERE {where}", values)  # noqa: S608 (see _where)
            return cursor.rowcount

    async def expire(self, before: datetime, *, limit: int) -> Expired:
        """Delete the oldest rows by the primary key; see Storage."""
        # What ids.new_message_id gives a message of that time begins so.
        bound = f"msg_{int(before.timestamp() * 1000) + 1:012x}"
        with _Guard("delete messages"):
            rows = await self._writer.execute_fetchall(EXPIRE, (bound, _micros(before), limit))
        sessions = [session for (session,) in rows]
        return Expired(len(sessions), frozenset(sessions))

    async def count(self) -> int:
        """Count the entries of the smallest index; see Storage."""
        with _Guard("count messages"):
            rows = await self._reader.execute_fetchall("SELECT count(*) FROM messages")
        return next(int(count) for (count,) in rows)

    async def scan(self, after: str = "", *, limit: int) -> Batch:
        """Read rows in the order of their ids; see Storage."""
        with _Guard("read messages"):
            rows = await self._reader.execute_fetchall(SCAN, (after, limit))
        messages = [_message(row) for row in rows]
        return Batch(messages, messages[-1].id if len(messages) == limit else "")

    async def put(self, messages: Sequence[Message]) -> int:
        """Insert what is missing, in one transaction; see Storage."""
        with _Guard("keep messages"):
            return await self._writer.call(lambda connection: _put(connection, messages))

    async def secret(self, name: str) -> bytes:
        """Read the file beside the database that holds it; see Storage."""
        return await asyncio.to_thread(read_or_make, Path(f"{self._path}-{name}"))

    async def ping(self) -> None:
        """Take the write lock and give it back; see Storage."""
        with _Guard("be written to"):
            await self._writer.executescript("BEGIN IMMEDIATE; ROLLBACK")

    async def _interrupt_pending(self) -> None:
        """Mark what servers that died left unfinished; those that live are working on theirs."""
        count = 0
        for owner in {owner for (owner,) in await self._writer.execute_fetchall(OWNERS)}:
            if owner == self._owner:  # it had this slot before
                count += await self._interrupt(owner)
                continue
            with held_if_free(self._path, owner) as dead:
                if dead:
                    count += await self._interrupt(owner)
        if count:
            log.warning("messages were interrupted when the server died", count=count)

    async def _interrupt(self, owner: int) -> int:
        cursor = await self._writer.execute(INTERRUPT, (Status.INTERRUPTED, _micros(datetime.now(UTC)), owner))
        return cursor.rowcount


FAULTS = (sqlite3.Error, ValueError, OverflowError)
"""ValueError: the connection is closed, or a text is none. OverflowError: a number beyond 64 bits."""


class _Guard:
    """Turns every fault of the database, in its block, into StorageUnavailable.

    A class and no generator, which would take three times as long.
    """

    __slots__ = ("_doing",)

    def __init__(self, doing: str) -> None:
        self._doing = doing

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, FAULTS):
            raise _unavailable(self._doing, error) from error


def _is_kept(outcome: Outcome) -> bool:
    if isinstance(outcome, FAULTS):
        raise _unavailable("keep a message", outcome) from outcome
    return rows_of(outcome) == 1


def _is_settled(outcome: Outcome) -> None:
    if isinstance(outcome, FAULTS):
        raise _unavailable("keep an answer", outcome) from outcome
    rows_of(outcome)


def _unavailable(doing: str, error: Exception) -> StorageUnavailable:
    log.warning("storage failed", doing=doing, cause=_cause(error))
    return StorageUnavailable(f"the database can't {doing} now ({_cause(error)})", metadata={"store": "sqlite"})


def _cause(error: Exception) -> str:
    """Say in words what SQLite or the system reported, without quoting it."""
    name = getattr(error, "sqlite_errorname", "")
    for prefix, words in (
        ("SQLITE_BUSY", "another process holds it"),
        ("SQLITE_LOCKED", "another process holds it"),
        ("SQLITE_FULL", "the disk is full"),
        ("SQLITE_IOERR", "the disk failed or is full"),
        ("SQLITE_READONLY", "it is read-only"),
        ("SQLITE_CANTOPEN", "the file can't be opened"),
        ("SQLITE_NOTADB", "the file is not a database"),
        ("SQLITE_CORRUPT", "the file is damaged"),
    ):
        if name.startswith(prefix):
            return words
    if isinstance(error, OSError):
        return error.strerror or "system error"
    if isinstance(error, UnicodeError | OverflowError):
        return "a value is none that it can hold"
    return name or "closed"


def _where(scope: Scope) -> tuple[str, tuple[Any, ...]]:
    """Return the condition of a scope, with its values apart."""
    if scope.user_id:
        return "user_id = ? AND user_id <> ''", (scope.user_id,)
    return "session_id = ?", (scope.session_id,)


def _micros(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(microseconds=1)


def _moment(micros: int) -> datetime:
    return EPOCH + timedelta(microseconds=micros)


def _row(message: Message) -> tuple[Any, ...]:
    """Return the values of COLUMNS. Written out, because two are made for every message."""
    return (
        message.id,
        message.user_id,
        message.session_id,
        message.request_id,
        message.message,
        *_ending(message),
        _micros(message.created_at),
        None if message.completed_at is None else _micros(message.completed_at),
        message.request_key or None,
        message.request_digest,
    )


def _ending(message: Message) -> tuple[Any, ...]:
    """Return the values of the columns from ``answer`` to ``passages``."""
    usage = message.usage
    passages = message.passages
    return (
        message.answer,
        message.status,
        message.finish_reason,
        message.error_reason,
        message.model,
        *(
            (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens, usage.cost_usd, usage.estimated)
            if usage
            else _NO_USAGE
        ),
        message.cached,
        ",".join(message.degraded),
        _encode(passages).decode() if passages else "[]",
    )


def _put(connection: sqlite3.Connection, messages: Sequence[Message]) -> int:
    """Insert the messages that are not there; on the connection's thread."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        new = 0
        for message in messages:
            taken = connection.execute(
                "SELECT 1 FROM messages WHERE request_key = ?", (message.request_key,)
            ).fetchone()
            row = _row(replace(message, request_key="") if taken else message)
            new += connection.execute(INSERT_IF_NEW, (*row, NOBODY)).rowcount
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return new


def _message(values: Sequence[Any]) -> Message:
    row = dict(zip(COLUMNS, values, strict=True))
    usage = None
    if row["total_tokens"] is not None:
        usage = Usage(
            row["prompt_tokens"],
            row["completion_tokens"],
            row["total_tokens"],
            row["cost_usd"],
            estimated=bool(row["estimated"]),
        )
    return Message(
        id=row["id"],
        user_id=row["user_id"],
        session_id=row["session_id"],
        request_id=row["request_id"],
        message=row["message"],
        created_at=_moment(row["created_at"]),
        answer=row["answer"],
        status=Status(row["status"]),
        finish_reason=row["finish_reason"] and FinishReason(row["finish_reason"]),
        error_reason=row["error_reason"],
        model=row["model"],
        usage=usage,
        completed_at=None if row["completed_at"] is None else _moment(row["completed_at"]),
        cached=bool(row["cached"]),
        degraded=tuple(Part(part) for part in row["degraded"].split(",") if part),
        passages=_decode(row["passages"]),
        request_key=row["request_key"] or "",
        request_digest=row["request_digest"],
    )
