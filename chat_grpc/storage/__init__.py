"""Keeping what was said."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from chat_grpc.domain import Message


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose messages: exactly one of the two is not empty."""

    user_id: str = ""
    session_id: str = ""


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a page begins: after the message with this time and id, newest first."""

    created_at: datetime
    id: str


class Storage(Protocol):
    """A history. Every method raises StorageUnavailable when it can't do its work, and then has done none of it."""

    async def add(self, message: Message) -> bool:
        """Keep a message; it is durable on return.

        Returns:
            False, with nothing kept, if another message has its ``request_key``.
        """

    async def find_request(self, request_key: str) -> Message | None:
        """Return the message that has a request_key."""

    async def settle(self, message: Message) -> None:
        """Keep how a message ended, over what ``add`` kept; it is durable on return.

        A message that was deleted in between stays deleted. One that was not
        completed lets go of its ``request_key``.
        """

    async def list_messages(self, scope: Scope, *, limit: int, before: Cursor | None = None) -> list[Message]:
        """Return at most ``limit`` messages, newest first, older than ``before``."""

    async def delete_messages(self, scope: Scope) -> int:
        """Delete all messages of the scope and return how many there were."""

    async def ping(self) -> None:
        """Return if a message could be kept now."""

    async def close(self) -> None:
        """Finish what was begun and let go of the database."""
