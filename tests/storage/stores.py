"""Every kind of storage, as the tests of all of them open it."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from chat_grpc.domain import Message
from chat_grpc.settings import load
from chat_grpc.storage import Storage
from chat_grpc.storage.opening import open_storage

T0 = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
SESSION = "0b9d6b1c-9b1d-4f6c-8a58-0d9b3d5b6f00"


def message(number: int, **fields: object) -> Message:
    """Return a pending message; its number decides its id and, in microseconds, its time."""
    values = {
        "id": f"msg_{number:06}",
        "user_id": "anna",
        "session_id": SESSION,
        "request_id": f"r{number}",
        "message": f"question {number}",
        "created_at": T0 + timedelta(microseconds=number),
    }
    return Message(**{**values, **fields})  # type: ignore[arg-type]  # fields are of mixed types


@dataclass(frozen=True)
class Store:
    """A place where messages are kept, and which of the storages keeps them there.

    ``shared`` tells whether several servers may use it at the same time.
    """

    kind: str
    url: str

    @property
    def shared(self) -> bool:
        """Whether several servers may use it at the same time."""
        return self.kind != "sqlite"

    @asynccontextmanager
    async def open(self, **settings: str) -> AsyncIterator[Storage]:
        """Open it as a server does, with further settings by their variables' names, and close it."""
        storage = await open_storage(load({"CHAT_DATABASE_URL": self.url, **settings}))
        try:
            yield storage
        finally:
            await storage.close()


def sqlite_store(folder: Path) -> Store:
    """Return a new SQLite file."""
    return Store("sqlite", f"sqlite+aiosqlite:///{folder}/new/chat.db")


def dynamodb_store(kind: str, endpoint: str) -> Store:
    """Return a new table of a server."""
    return Store(kind, f"dynamodb://chat-{uuid.uuid4().hex}?region=us-east-1&endpoint_url={endpoint}")


MakeStore = Callable[[], Store]
