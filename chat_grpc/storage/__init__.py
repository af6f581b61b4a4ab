"""Keeping what was said."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
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


@dataclass(frozen=True, slots=True)
class Batch:
    """Some of all messages; ``next`` is where the next batch begins, "" after the last."""

    messages: list[Message]
    next: str


@dataclass(frozen=True, slots=True)
class Expired:
    """What was deleted for its age: how many messages, and the sessions they belonged to."""

    count: int = 0
    sessions: frozenset[str] = frozenset()


class Storage(Protocol):
    """A history. Every method raises StorageUnavailable when it can't do its work, and then has done none of it."""

    def add(self, message: Message) -> Awaitable[bool]:
        """Begin to keep a message; it is durable when what is returned is done.

        Returns:
            False, with nothing kept, if another message has its ``request_key``.
        """

    async def find_request(self, request_key: str) -> Message | None:
        """Return the message that has a request_key."""

    def settle(self, message: Message) -> Awaitable[None]:
        """Begin to keep how a message ended, over what ``add`` kept; it is durable when what is returned is done.

        A message that was deleted in between stays deleted. One that was not
        completed lets go of its ``request_key``.
        """

    async def list_messages(self, scope: Scope, *, limit: int, before: Cursor | None = None) -> list[Message]:
        """Return at most ``limit`` messages, newest first, older than ``before``."""

    async def delete_messages(self, scope: Scope) -> int:
        """Delete all messages of the scope and return how many there were."""

    async def expire(self, before: datetime, *, limit: int) -> Expired:
        """Delete at most ``limit`` of the messages created before a time; less than that means that no more are left.

        A store that lets messages expire by itself deletes none here.
        """

    async def count(self) -> int:
        """Return how many messages there are, or about how many: for a progress bar, not for serving."""

    async def scan(self, after: str = "", *, limit: int) -> Batch:
        """Return about ``limit`` of all messages, in an order that stays as it is: for an export, not for serving.

        Args:
            after: ``Batch.next`` of the batch before; it is good for as long as the store is.
            limit: how many, at most; a batch may hold fewer though it is not the last.
        """

    async def put(self, messages: Sequence[Message]) -> int:
        """Keep messages as they are, all or none; they are durable on return: for an import, not for serving.

        One whose id is kept already is passed over. A ``request_key`` that
        another message has stays with that one.

        Returns:
            How many were not there before.
        """

    async def secret(self, name: str) -> bytes:
        """Return 32 random bytes that stay the same, made when they are first asked for by this name."""

    async def ping(self) -> None:
        """Return if a message could be kept now."""

    async def close(self) -> None:
        """Finish what was begun and let go of the database."""
