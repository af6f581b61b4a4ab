"""``chat-grpc admin backup``: a copy of a SQLite database that is in use."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from chat_grpc.embedded.progress import Progress
from chat_grpc.settings import Settings
from chat_grpc.storage.opening import sqlite_path
from chat_grpc.terminal.admin.running import CommandError, say, sync_folder

PAGES = 512
"""Pages copied in a step, 2 MB: the disk is the server's in between."""


def run(settings: Settings, target: Path, *, force: bool) -> None:
    """Copy the database to a file, which appears once it is whole.

    Raises:
        CommandError: there is no such database, the file is there, or the copy is damaged.
        OSError: the file can't be written.
    """
    if not settings.database_url.startswith("sqlite"):
        raise CommandError("only a SQLite database is a file; `chat-grpc admin export` writes the messages of any")
    source = sqlite_path(settings.database_url)
    if not source.is_file():
        raise CommandError(f"there is no database {source}; check CHAT_DATABASE_URL")
    if target.exists() and not force:
        raise CommandError(f"{target} is there already; --force overwrites it")
    if target.exists() and target.samefile(source):
        raise CommandError(f"{target} is the database itself; name another file")
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        part.touch(mode=0o600, exist_ok=False)
        _copy(source, part)
        shutil.copymode(source, part)
        part.replace(target)
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", "it is no database")
        raise CommandError(f"the database {source} can't be copied to {target} ({name})") from error
    finally:
        for leftover in (part, *(part.with_name(part.name + end) for end in ("-journal", "-wal", "-shm"))):
            leftover.unlink(missing_ok=True)
    sync_folder(target.parent)
    say(f"{target}: {target.stat().st_size / 1e6:.1f} MB")


def _copy(source: Path, part: Path) -> None:
    with (
        closing(sqlite3.connect(f"file:{quote(str(source))}?mode=rw", uri=True, isolation_level=None)) as reading,
        closing(sqlite3.connect(part, isolation_level=None)) as writing,
    ):
        # One view of the database from the first step to the last. Without it
        # SQLite would begin anew after each message that is kept meanwhile.
        reading.execute("BEGIN")
        reading.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        writing.execute("PRAGMA synchronous = OFF")  # it is synced once, at the end
        (pages,) = reading.execute("PRAGMA page_count").fetchone()
        with Progress() as progress:
            advance = progress.meter("copying pages:", pages)
            done = 0

            def step(_: int, remaining: int, total: int) -> None:
                nonlocal done
                advance(total - remaining - done)
                done = total - remaining

            reading.backup(writing, pages=PAGES, progress=step)
        # So that the copy is one file, without a log beside it.
        writing.execute("PRAGMA journal_mode = DELETE")
        (verdict,) = writing.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise CommandError(f"the database {source} is damaged; the copy was thrown away")
    with part.open("rb") as written:
        os.fsync(written.fileno())
