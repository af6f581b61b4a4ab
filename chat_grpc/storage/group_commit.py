"""Group commit for SQLite: what is to be written while a write is under way is written together."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import aiosqlite

from chat_grpc.lasting import Lasting

T = TypeVar("T")
Outcome: TypeAlias = "int | Exception"
"""How many rows a statement has changed, or why it was not committed."""
Write: TypeAlias = tuple[str, Sequence[Any], Lasting[Any], Callable[[Outcome], Any]]
"""A statement, its values, who waits for it, and what makes of its outcome what that one is told."""

GATHER_SECONDS = 0.002
"""How long a group waits for more, where waiting has shown to be worth it."""
MAX_SKIPS = 256
"""How many groups at most go at once between two that try whether waiting is worth it."""
HELD_BY_ANOTHER = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_PRIMARY = 0xFF
"""The bits of an extended result code that say which kind of error it is."""
_ROWS_AT_ONCE = 64
"""aiosqlite's own default for cursors that are iterated over; none is here."""


def rows_of(outcome: Outcome) -> int:
    """Return how many rows a statement has changed; raise why it was not committed."""
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


class WritingConnection(aiosqlite.Connection):
    """A connection whose ``write`` commits in groups.

    A commit takes one hop to the connection's thread and back, the same pages
    of the file, and a sync of the log where that is asked for, whether it holds
    one statement or twenty. What comes while a group is written goes together,
    in the order it came. Whether a group waits a little for more (PostgreSQL's
    commit_delay) is found out by trying: as long as nothing joins, it is tried
    more and more rarely, so that a lone caller waits for nothing.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(lambda: sqlite3.connect(path, isolation_level=None), _ROWS_AT_ONCE)
        self._waiting: list[Write] = []
        self._committing = False
        self._closing = False
        self._gathering = False
        self._skips = self._skip = 1
        self._idle: asyncio.Event | None = None
        """Set when nothing is to be written any more; made when ``close`` waits for that."""

    def write(self, statement: str, values: Sequence[Any], told: Callable[[Outcome], T]) -> Lasting[T]:
        """Begin to run a statement and commit it; what is returned is done when that is, and tells the outcome.

        A future and no coroutine: who waits is woken at once, and not by way of
        a task that wakes another. A task that is cancelled meanwhile is
        cancelled when the statement has been run.

        Args:
            statement: of SQL.
            values: for its placeholders.
            told: returns what the future's result is for an outcome, or raises
                what its error is. Errors are sqlite3.Error; ValueError, if the
                connection is closed or a value is none that SQLite can hold;
                OverflowError, if a number is larger than SQLite's.
        """
        loop = asyncio.get_running_loop()
        future: Lasting[T] = Lasting(loop=loop)
        if self._closing:
            _tell(future, told, ValueError("the connection is closed"))
            return future
        self._waiting.append((statement, values, future, told))
        if not self._committing:
            self._committing = True
            self._begin_soon(loop)
        return future

    async def call(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Run a function on the connection's thread, between two groups; it leaves no transaction open.

        Raises:
            ValueError: the connection is closed.
        """
        result: T = await self._execute(lambda: function(self._conn))  # type: ignore[no-untyped-call]  # aiosqlite leaves it untyped
        return result

    async def close(self) -> None:
        """Commit what waits, take nothing more, and close."""
        self._closing = True
        if self._committing:
            self._idle = self._idle or asyncio.Event()
            await self._idle.wait()
        await super().close()

    def _begin_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        self._gathering = not self._skip
        if self._gathering:
            loop.call_later(GATHER_SECONDS, self._begin, loop)
        else:
            self._skip -= 1
            # Not at once: whatever else this turn of the loop writes goes along,
            # and the thread is woken when this one is about to let go of the GIL.
            loop.call_soon(self._begin, loop)

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        group, self._waiting = self._waiting, []
        if len(group) > 1:
            self._skips = 1
            self._skip = 0
        elif self._gathering:
            self._skips = min(self._skips * 2, MAX_SKIPS)
            self._skip = self._skips
        # The thread answers with one call for the whole group, by itself.
        self._tx.put_nowait((None, lambda: loop.call_soon_threadsafe(self._done, loop, group, self._commit(group))))

    def _done(self, loop: asyncio.AbstractEventLoop, group: list[Write], outcomes: list[Outcome]) -> None:
        for (_, _, future, told), outcome in zip(group, outcomes, strict=True):
            _tell(future, told, outcome)
        if self._waiting:
            self._begin_soon(loop)
        else:
            self._committing = False
            if self._idle is not None:
                self._idle.set()

    # --- on the connection's thread: nothing may be raised here, because those who wait would wait for ever ---

    def _commit(self, group: list[Write]) -> list[Outcome]:
        if len(group) > 1:
            try:
                return self._together(group)
            except Exception as error:  # noqa: BLE001 (whatever it is, each of those who wait is told)
                fault = self._roll_back() or error
                if fault is not error or _held_by_another(error):
                    # The next one would wait as long, and each after it.
                    return [fault] * len(group)
                # One of them can't be done; the others can. Each for itself, then.
        return [self._alone(write) for write in group]

    def _together(self, group: list[Write]) -> list[Outcome]:
        execute = self._conn.execute
        execute("BEGIN IMMEDIATE")
        changed: list[Outcome] = [execute(statement, values).rowcount for statement, values, _, _ in group]
        execute("COMMIT")
        return changed

    def _roll_back(self) -> Exception | None:
        """Take back what was begun, unless SQLite has (it does when the disk is full); return why that can't be."""
        try:
            if self._conn.in_transaction:
                self._conn.execute("ROLLBACK")
        except Exception as error:  # noqa: BLE001 (see _commit)
            return error
        return None

    def _alone(self, write: Write) -> Outcome:
        statement, values, _, _ = write
        try:
            return self._conn.execute(statement, values).rowcount
        except Exception as error:  # noqa: BLE001 (see _commit)
            return error


def _tell(future: Lasting[T], told: Callable[[Outcome], T], outcome: Outcome) -> None:
    try:
        future.set_result(told(outcome))
    except Exception as error:  # noqa: BLE001 (whatever it is, whoever waits is told)
        future.set_exception(error)


def _held_by_another(error: Exception) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & _PRIMARY in HELD_BY_ANOTHER
