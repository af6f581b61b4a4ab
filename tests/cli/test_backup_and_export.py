"""`chat-grpc admin`: backup, export and import, as people run them, beside a server that goes on."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

from chat_grpc.domain import FinishReason, Message, Part, Passage, Status, Usage
from chat_grpc.storage import Scope
from chat_grpc.storage.sqlite import SQLiteStorage
from tests.cli.conftest import HANG_GUARD, Cli, clean_environment
from tests.support.fixtures import StartService

T0 = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
OTHER = "sqlite+aiosqlite:///./other.db"


def message(number: int, **fields: object) -> Message:
    values = {
        "id": f"msg_{number:032x}",
        "user_id": "anna",
        "session_id": "0b9d6b1c-9b1d-4f6c-8a58-0d9b3d5b6f00",
        "request_id": f"r{number}",
        "message": f"question {number}",
        "created_at": T0 + timedelta(milliseconds=number),
        "answer": "an answer " * 20,
        "status": Status.COMPLETED,
        "finish_reason": FinishReason.STOP,
        "model": "local/m",
        "usage": Usage(1, 2, 3, 0.004, estimated=True),
        "completed_at": T0 + timedelta(seconds=1),
        "request_key": f"key {number}",
        "request_digest": "d",
    }
    return Message(**{**values, **fields})  # type: ignore[arg-type]  # fields are of mixed types


async def fill(path: Path, *messages: Message) -> None:
    storage = await SQLiteStorage.open(path)
    assert await storage.put(messages) == len(messages)
    await storage.close()


async def content(path: Path) -> list[Message]:
    """Return all messages of a database, as they are."""
    storage = await SQLiteStorage.open(path, serving=False, create=False)
    try:
        return (await storage.scan(limit=1_000_000)).messages
    finally:
        await storage.close()


def names(folder: Path) -> list[str]:
    """Return the names of what is in a folder."""
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "data" / "chat.db"


# --- backup ---


async def test_backup_is_a_database_of_its_own(cli: Cli, tmp_path: Path, database: Path) -> None:
    messages = [message(number) for number in range(50)]
    await fill(database, *messages)
    done = await cli("admin", "backup", "copy.db")
    assert (done.code, done.stdout) == (0, ""), done.stderr
    assert names(tmp_path) == ["copy.db", "data"]
    assert await content(tmp_path / "copy.db") == messages


async def test_backup_overwrites_only_when_told_to(cli: Cli, tmp_path: Path, database: Path) -> None:
    await fill(database, message(1))
    copy = tmp_path / "copy.db"
    copy.write_text("dear to me")
    done = await cli("admin", "backup", "copy.db")
    assert (done.code, copy.read_text()) == (1, "dear to me")
    assert "--force" in done.stderr
    assert (await cli("admin", "backup", "copy.db", "--force")).code == 0
    assert await content(copy) == [message(1)]
    refused = await cli("admin", "backup", "data/chat.db", "--force")
    assert refused.code == 1
    assert "is the database itself" in refused.stderr
    assert await content(database) == [message(1)]


@pytest.mark.parametrize("command", [("backup", "copy"), ("export", "copy")])
async def test_a_database_that_is_not_there_is_not_made(cli: Cli, tmp_path: Path, command: tuple[str, str]) -> None:
    done = await cli("admin", *command)
    assert done.code == 1
    assert "there is no database data/chat.db" in done.stderr
    assert names(tmp_path) == []


async def test_backup_of_what_is_no_database(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "chat.db").write_text(
        "I am a shopping list, and longer than a header of SQLite would be." * 20
    )
    done = await cli("admin", "backup", "copy.db")
    assert done.code == 1
    assert "SQLITE_NOTADB" in done.stderr
    assert "Traceback" not in done.stderr
    assert names(tmp_path) == ["data"]


async def test_backup_ends_while_messages_are_kept_and_holds_those_from_before(
    cli: Cli, start: StartService, tmp_path: Path
) -> None:
    # 20 MB, so that the copy takes many steps and messages are kept between them.
    await fill(tmp_path / "chat.db", *(message(number, answer="x" * 20_000) for number in range(1000)))
    async with start(CHAT_RATE_LIMIT="off") as service:
        before = [event.completed.message_id for event in await service.ask(user_id="bert")][-1]
        asking = True

        async def ask() -> int:
            count = 0
            while asking:
                await service.ask(f"question {count}", user_id="carl")
                count += 1
            return count

        task = asyncio.ensure_future(ask())
        done = await cli("admin", "backup", "copy.db", "--database", service.settings.database_url)
        asking = False
        assert await task > 0
    assert done.code == 0, done.stderr
    with closing(sqlite3.connect(tmp_path / "copy.db")) as copy:
        assert copy.execute("SELECT count(*) FROM messages WHERE user_id = 'anna'").fetchone() == (1000,)
        assert copy.execute("SELECT status FROM messages WHERE id = ?", (before,)).fetchone() == ("completed",)
        assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)


# --- export and import ---


async def test_export_has_these_names_and_no_others(cli: Cli, database: Path) -> None:
    full = message(7, degraded=(Part.RETRIEVAL,), passages=(Passage("Title", 0.5, "snippet", ("tag",)),))
    await fill(database, full)
    done = await cli("admin", "export", "-")
    header, line = done.stdout.splitlines()
    assert json.loads(header) == {"format": "chat-grpc.messages", "version": 1}
    # Programs of others read these. A field may be added; none may be renamed.
    assert json.loads(line) == {
        "id": f"msg_{7:032x}",
        "user_id": "anna",
        "session_id": "0b9d6b1c-9b1d-4f6c-8a58-0d9b3d5b6f00",
        "request_id": "r7",
        "message": "question 7",
        "created_at": "2026-01-02T03:04:05.685901Z",
        "answer": "an answer " * 20,
        "status": "completed",
        "finish_reason": "stop",
        "error_reason": "",
        "model": "local/m",
        "usage": {
            "prompt_tokens": 1,
            "completion_tokens": 2,
            "total_tokens": 3,
            "cost_usd": 0.004,
            "estimated": True,
        },
        "completed_at": "2026-01-02T03:04:06.678901Z",
        "cached": False,
        "degraded": ["retrieval"],
        "passages": [{"title": "Title", "score": 0.5, "snippet": "snippet", "tags": ["tag"]}],
        "request_key": "key 7",
        "request_digest": "d",
    }


async def test_what_is_exported_and_imported_is_the_same_and_never_twice(
    cli: Cli, tmp_path: Path, database: Path
) -> None:
    messages = [
        message(number, status=Status.FAILED, usage=None, completed_at=None, finish_reason=None, request_key="")
        if number % 3
        else message(number, answer="ü\n\u2028 \U0001f600")
        for number in range(1100)
    ]
    await fill(database, *messages)
    exported = await cli("admin", "export", "all.jsonl")
    assert exported.code == 0, exported.stderr
    assert (tmp_path / "all.jsonl").stat().st_mode & 0o077 == 0
    first = await cli("admin", "import", "all.jsonl", "--database", OTHER)
    assert "1100 messages were imported, 0 were there already" in first.stderr
    again = await cli("admin", "import", "all.jsonl", "--database", OTHER)
    assert "0 messages were imported, 1100 were there already" in again.stderr
    piped = await cli("admin", "import", "-", "--database", OTHER, stdin=(tmp_path / "all.jsonl").read_text())
    assert "0 messages were imported, 1100 were there already" in piped.stderr
    assert await content(tmp_path / "other.db") == messages
    assert names(tmp_path) == ["all.jsonl", "data", "other.db"]


async def test_import_leaves_what_is_there_as_it_is(cli: Cli, tmp_path: Path, database: Path) -> None:
    await fill(database, message(1), message(2))
    await cli("admin", "export", "all.jsonl")
    newer = message(1, answer="newer")
    taken = message(3, request_key="key 2")
    await fill(tmp_path / "other.db", newer, taken)
    assert (await cli("admin", "import", "all.jsonl", "--database", OTHER)).code == 0
    assert await content(tmp_path / "other.db") == [newer, message(2, request_key=""), taken]


async def test_export_and_import_leave_alone_what_a_server_is_working_on(
    cli: Cli, tmp_path: Path, database: Path
) -> None:
    pending = message(1, status=Status.PENDING, answer="", usage=None, completed_at=None, finish_reason=None)
    storage = await SQLiteStorage.open(database)
    await storage.add(pending)
    await cli("admin", "export", "all.jsonl")
    await cli("admin", "import", "all.jsonl")
    assert await storage.list_messages(Scope(user_id="anna"), limit=10) == [pending]
    await storage.settle(replace(pending, status=Status.COMPLETED))
    await storage.close()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"format":"chat-grpc.messages","version":2}', "version 2"),
        ('{"format":"another","version":1}', "no export"),
        ("", "no export"),
        ("[]", "no export"),
    ],
)
async def test_import_refuses_other_files(cli: Cli, tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "x.jsonl").write_text(line)
    done = await cli("admin", "import", "x.jsonl")
    assert done.code == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"id":"msg_', '"id":"mine_'),
        ('"message":"question 2"', '"message":7'),
        ('"status":"completed"', '"status":"SECRET"'),
        (".680901Z", ".680901"),
        ("}", ""),
    ],
    ids=["id", "type", "status", "time without zone", "cut"],
)
async def test_a_line_that_is_no_message_is_named_and_those_before_it_are_kept(
    cli: Cli, tmp_path: Path, database: Path, old: str, new: str
) -> None:
    await fill(database, *map(message, range(4)))
    lines = (await cli("admin", "export", "-")).stdout.splitlines()
    assert old in lines[3]
    lines[3] = lines[3].replace(old, new)
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    done = await cli("admin", "import", "x.jsonl", "--database", OTHER)
    assert done.code == 1
    assert "line 4 of x.jsonl is no message" in done.stderr
    assert "SECRET" not in done.stderr
    assert await content(tmp_path / "other.db") == [message(0), message(1)]
    # Mended, it goes on.
    lines[3] = lines[2]
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    done = await cli("admin", "import", "x.jsonl", "--database", OTHER)
    assert (done.code, [one.id for one in await content(tmp_path / "other.db")]) == (
        0,
        [message(number).id for number in (0, 1, 3)],
    )


async def interrupted(tmp_path: Path, *arguments: str) -> int:
    """Run a command and kill it as soon as it has made a checkpoint; return its exit code."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "chat_grpc", *arguments),
        cwd=tmp_path,
        env=clean_environment(),
        stderr=asyncio.subprocess.DEVNULL,
    )
    async with asyncio.timeout(HANG_GUARD):
        while "all.jsonl.progress" not in names(tmp_path) and process.returncode is None:
            await asyncio.sleep(0.001)
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
        return await process.wait()


async def test_an_export_that_was_killed_goes_on(cli: Cli, tmp_path: Path, database: Path) -> None:
    messages = [message(number, answer="x" * 2000) for number in range(10_000)]
    await fill(database, *messages)
    code = await interrupted(tmp_path, "admin", "export", "all.jsonl")
    assert code == -signal.SIGKILL
    assert not (tmp_path / "all.jsonl").exists()
    with (tmp_path / "all.jsonl.part").open("ab") as part:
        part.write(b'{"id": "half a li')  # what a death leaves behind its last checkpoint
    done = await cli("admin", "export", "all.jsonl")
    assert done.code == 0, done.stderr
    assert "going on after " in done.stderr
    ids = [json.loads(line)["id"] for line in (tmp_path / "all.jsonl").read_text().splitlines()[1:]]
    assert ids == [one.id for one in messages]
    assert names(tmp_path) == ["all.jsonl", "data"]


async def test_an_import_that_was_killed_goes_on(cli: Cli, tmp_path: Path, database: Path) -> None:
    messages = [message(number, answer="x" * 2000) for number in range(10_000)]
    await fill(database, *messages)
    await cli("admin", "export", "all.jsonl")
    arguments = ("admin", "import", "all.jsonl", "--database", OTHER)
    assert await interrupted(tmp_path, *arguments) == -signal.SIGKILL
    begun = len(await content(tmp_path / "other.db"))
    assert 0 < begun < len(messages)
    done = await cli(*arguments)
    assert done.code == 0, done.stderr
    assert "going on after " in done.stderr
    assert await content(tmp_path / "other.db") == messages
    assert not (tmp_path / "all.jsonl.progress").exists()


async def test_a_checkpoint_of_another_job_is_not_gone_on_from(cli: Cli, tmp_path: Path, database: Path) -> None:
    await fill(database, *map(message, range(1200)))
    await cli("admin", "export", "all.jsonl")
    arguments = ("admin", "import", "all.jsonl", "--database")
    await interrupted(tmp_path, *arguments, OTHER)
    os.utime(tmp_path / "all.jsonl", (1, 1))  # it is another file now
    done = await cli(*arguments, "sqlite+aiosqlite:///./third.db")
    assert "1200 messages were imported" in done.stderr


async def test_a_database_url_that_is_none(cli: Cli) -> None:
    done = await cli("admin", "export", "-", "--database", "mysql://x")
    assert done.code == 1
    assert "must be a URL such as" in done.stderr
