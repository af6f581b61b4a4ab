"""Which storage a URL names."""

from __future__ import annotations

from pathlib import Path

from chat_grpc.settings import Settings
from chat_grpc.storage import Storage
from chat_grpc.storage.sqlite import SQLiteStorage


async def open_storage(settings: Settings, *, serving: bool = True, create: bool = True) -> Storage:
    """Open the storage that ``database_url`` names.

    Args:
        settings: where it is, and what it promises.
        serving: whether this is the server; an admin command leaves alone what a server is working on.
        create: whether it is made if it is missing.

    Raises:
        StorageUnavailable: it can't be opened.
    """
    return await SQLiteStorage.open(
        sqlite_path(settings.database_url), synchronous=settings.sqlite_synchronous, serving=serving, create=create
    )


def sqlite_path(url: str) -> Path:
    """Return the file that a sqlite URL names."""
    return Path(url.partition("///")[2])
