"""Group commit: what is written together, and what becomes of those who wait when something goes wrong."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from chat_grpc.storage.group_commit import WritingConnection, rows_of

INSERT = "INSERT INTO things (id, text) VALUES (?, ?)"


class Watched(WritingConnection):
    """A connection that tells the statements that SQLite runs, and how often it has waited for more."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.statements: list[str] = []
        self.gathered = 0

    def _begin_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        super()._begin_soon(loop)
        self.gathered += self._gathering

    def groups(self) -> list[int]:
        """Return the number of inserts in each commit, in the order they were made."""
        sizes, inside = [], False
        for statement in self.statements:
            if statement.startswith("BEGIN"):
                inside = True
                sizes.append(0)
            elif statement.startswith(("COMMIT", "ROLLBACK")):
                inside = False
            elif statement.startswith("INSERT"):
                if not inside:
                    sizes.append(0)
                sizes[-1] += 1
        return sizes


@pytest.fixture
async def connection(tmp_path: Path) -> AsyncIterator[Watched]:
    opened = Watched(tmp_path / "things.db")
    await opened
    await opened.execute("PRAGMA journal_mode = WAL")
    await opened.execute("PRAGMA busy_timeout = 100")
    await opened.execute("CREATE TABLE things (id INTEGER PRIMARY KEY, text TEXT NOT NULL) STRICT")
    await opened.set_trace_callback(opened.statements.append)
    yield opened
    await opened.close()


async def kept(connection: WritingConnection) -> list[int]:
    return [number for (number,) in await connection.execute_fetchall("SELECT id FROM things ORDER BY rowid")]


async def write(connection: WritingConnection, *numbers: int) -> list[int | BaseException]:
    writes = (connection.write(INSERT, (number, "x"), rows_of) for number in numbers)
    return await asyncio.gather(*writes, return_exceptions=True)


async def test_what_is_written_in_one_turn_of_the_loop_is_one_commit(connection: Watched) -> None:
    assert await write(connection, *range(20)) == [1] * 20
    assert connection.groups() == [20]
    assert await kept(connection) == list(range(20))


async def test_what_comes_while_a_group_is_written_is_the_next_one(connection: Watched, tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "things.db", isolation_level=None)
    await connection.execute("PRAGMA busy_timeout = 10000")
    other.execute("BEGIN IMMEDIATE")  # so that the first group takes as long as this test wants
    first = asyncio.ensure_future(write(connection, 1))
    await asyncio.sleep(0.02)
    others = asyncio.ensure_future(write(connection, 2, 3, 4))
    await asyncio.sleep(0.02)
    later = asyncio.ensure_future(write(connection, 5))
    await asyncio.sleep(0.02)
    assert not first.done()
    other.execute("ROLLBACK")
    other.close()
    assert [await first, await others, await later] == [[1], [1, 1, 1], [1]]
    assert connection.groups() == [1, 4]


async def test_rows_changed_are_told_apart(connection: Watched) -> None:
    await write(connection, 1, 2, 3)
    update = "UPDATE things SET text = 'y' WHERE id >= ?"
    ignoring = f"{INSERT} ON CONFLICT DO NOTHING"
    outcomes = await asyncio.gather(
        connection.write(update, (2,), rows_of),
        connection.write(ignoring, (1, "z"), rows_of),
        connection.write(update, (9,), rows_of),
    )
    assert list(outcomes) == [2, 0, 0]


async def test_a_lone_writer_waits_more_and_more_rarely(connection: Watched) -> None:
    for number in range(600):
        await connection.write(INSERT, (number, "x"), rows_of)
    # Tried at once, and after 2, 4, 8 ... 256 more: nine or ten times in 600, not 600.
    assert 5 <= connection.gathered <= 12
    assert set(connection.groups()) == {1}


async def test_writers_that_come_one_by_one_are_gathered_once_that_has_helped(connection: Watched) -> None:
    await write(connection, 1, 2)  # two at once: waiting is worth it from now on
    for first in range(10, 50, 2):
        one = asyncio.ensure_future(connection.write(INSERT, (first, "x"), rows_of))
        await asyncio.sleep(0)  # the second comes in another turn of the loop
        await asyncio.sleep(0)
        await connection.write(INSERT, (first + 1, "x"), rows_of)
        await one
    assert connection.gathered == 20
    assert connection.groups() == [2] * 21


async def test_who_leaves_does_not_take_others_along(connection: Watched) -> None:
    tasks = [asyncio.ensure_future(write(connection, number)) for number in range(4)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(outcome, asyncio.CancelledError) for outcome in outcomes] == [False, True, False, False]
    assert await kept(connection) == [0, 1, 2, 3]  # what was asked for before leaving is done


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        ((1, "x"), sqlite3.IntegrityError),  # the id is there
        ((7, None), sqlite3.IntegrityError),
        (("seven", "x"), sqlite3.Error),
        ((7, object()), sqlite3.Error),
        ((7,), sqlite3.ProgrammingError),
        ((2**63, "x"), OverflowError),
        ((7, "\ud800"), UnicodeEncodeError),
    ],
    ids=["conflict", "null", "type", "foreign type", "too few values", "too large", "no text"],
)
async def test_one_that_can_not_be_done_fails_alone(
    connection: Watched, bad: tuple[object, ...], error: type[Exception]
) -> None:
    await write(connection, 1)
    outcomes = await asyncio.wait_for(
        asyncio.gather(
            connection.write(INSERT, (2, "x"), rows_of),
            connection.write(INSERT, bad, rows_of),
            connection.write(INSERT, (3, "x"), rows_of),
            return_exceptions=True,
        ),
        30,
    )
    assert outcomes[0] == outcomes[2] == 1
    assert isinstance(outcomes[1], error)
    with pytest.raises(error):
        await asyncio.wait_for(connection.write(INSERT, bad, rows_of), 30)  # and so it does by itself
    assert await kept(connection) == [1, 2, 3]


async def test_a_database_that_another_holds_is_waited_for_once_not_by_each(
    connection: Watched, tmp_path: Path
) -> None:
    other = sqlite3.connect(tmp_path / "things.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    connection.statements.clear()
    outcomes = await asyncio.wait_for(write(connection, *range(50)), 30)
    assert {type(outcome) for outcome in outcomes} == {sqlite3.OperationalError}
    assert {getattr(outcome, "sqlite_errorname", "") for outcome in outcomes} == {"SQLITE_BUSY"}
    assert len(connection.statements) == 1
    other.execute("ROLLBACK")
    other.close()
    assert await write(connection, *range(50)) == [1] * 50


async def test_a_full_disk_fails_what_does_not_fit_and_nothing_else(connection: Watched) -> None:
    await write(connection, 1)
    [(pages,)] = await connection.execute_fetchall("PRAGMA page_count")
    await connection.execute(f"PRAGMA max_page_count = {pages + 3}")
    outcomes = await asyncio.gather(
        connection.write(INSERT, (2, "x"), rows_of),
        connection.write(INSERT, (3, "x" * 100_000), rows_of),
        connection.write(INSERT, (4, "x"), rows_of),
        return_exceptions=True,
    )
    assert outcomes[0] == outcomes[2] == 1
    assert getattr(outcomes[1], "sqlite_errorname", "") == "SQLITE_FULL"
    assert await kept(connection) == [1, 2, 4]
    [(verdict,)] = await connection.execute_fetchall("PRAGMA integrity_check")
    assert verdict == "ok"


async def test_closing_while_writing_keeps_what_came_before_and_refuses_the_rest(
    connection: Watched, tmp_path: Path
) -> None:
    early = [asyncio.ensure_future(connection.write(INSERT, (number, "x"), rows_of)) for number in range(10)]
    await asyncio.sleep(0)
    closing = asyncio.ensure_future(connection.close())
    await asyncio.sleep(0)
    late = asyncio.ensure_future(connection.write(INSERT, (99, "x"), rows_of))
    outcomes = await asyncio.wait_for(asyncio.gather(*early, late, return_exceptions=True), 30)
    await closing
    assert outcomes[:10] == [1] * 10
    assert isinstance(outcomes[10], ValueError)
    with pytest.raises(ValueError, match="closed"):
        await connection.write(INSERT, (100, "x"), rows_of)
    with sqlite3.connect(tmp_path / "things.db") as raw:
        assert raw.execute("SELECT count(*) FROM things").fetchone() == (10,)


async def test_those_who_wait_are_told_when_the_database_is_closed_under_them(connection: Watched) -> None:
    await connection.call(lambda raw: raw.close())
    outcomes = await asyncio.wait_for(write(connection, 1, 2, 3), 30)
    assert {type(outcome) for outcome in outcomes} == {sqlite3.ProgrammingError}
    outcomes = await asyncio.wait_for(write(connection, 1), 30)
    assert [type(outcome) for outcome in outcomes] == [sqlite3.ProgrammingError]
