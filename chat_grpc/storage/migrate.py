"""Bringing a database's schema up to date: numbered SQL files, only ever added to."""

from __future__ import annotations

from pathlib import Path

import aiosqlite

from chat_grpc.errors import StorageUnavailable

FOLDER = Path(__file__).parent / "migrations"


async def migrate(connection: aiosqlite.Connection, folder: Path = FOLDER) -> int:
    """Apply the migrations that the database has not seen, each in a transaction of its own.

    ``PRAGMA user_version`` holds the number of the last one applied; it is part
    of the transaction, so a death in the middle leaves the schema as it was.

    Returns:
        The version the schema has now.

    Raises:
        StorageUnavailable: the database is newer than this program.
        sqlite3.Error: it is no database, or can't be written.
    """
    rows = list(await connection.execute_fetchall("PRAGMA user_version"))
    version = int(rows[0][0])
    known = _migrations(folder)
    if version > max(known):
        raise StorageUnavailable(
            f"the database has schema {version}, this program knows {max(known)}; start a newer chat-grpc"
        )
    for number, path in sorted(known.items()):
        if number > version:
            sql = path.read_text(encoding="utf-8")
            await connection.executescript(f"BEGIN IMMEDIATE;\n{sql}\nPRAGMA user_version = {number};\nCOMMIT;")
            version = number
    return version


def _migrations(folder: Path) -> dict[int, Path]:
    return {int(path.name.split("_", 1)[0]): path for path in folder.glob("*.sql")}
