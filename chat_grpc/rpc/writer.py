"""Sending the messages of an answer without waiting for each to be on its way."""

from __future__ import annotations

import asyncio
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any

from chat_grpc.rpc.delta import delta_bytes


class EventWriter:
    """Begins to write a message at once, and waits only if the one before is not on its way by then.

    grpc.aio takes one message of a call at a time. Awaiting each write has the
    task that reads the model woken up once more for every token, just to hear
    that the token has left; tokens are much further apart than that takes.

    Args:
        write: the call's ``context.write``, for messages in their wire form.
    """

    __slots__ = ("_begun", "_left", "_write")

    def __init__(self, write: Callable[[bytes], Coroutine[Any, Any, None]]) -> None:
        self._write = write
        self._begun: Coroutine[Any, Any, None] | None = None
        self._left: asyncio.Future[Any] | None = None
        """Done when grpc has taken what was begun."""

    def give(self, text: str) -> Awaitable[None] | None:
        """Begin to write a piece of text; see ``begin``."""
        return self.begin(delta_bytes(text))

    def begin(self, message: bytes) -> Awaitable[None] | None:
        """Begin to write a message; what is returned, if anything, is to be awaited before the next.

        Raises:
            Exception: the call has ended.
        """
        if self._left is not None:
            if not self._left.done():
                return self._begin_later(message)
            self._end()
        self._begin(message)
        return None

    async def drain(self) -> None:
        """Wait until all that was begun is on its way.

        Raises:
            Exception: the call has ended.
        """
        if self._left is not None:
            if not self._left.done():
                await _done(self._left)
            self._end()

    def leave(self) -> None:
        """Be done with it; if the last write fails, or has failed, nobody needs to hear of it any more."""
        if self._left is not None:
            self._left.add_done_callback(_heard)

    async def _begin_later(self, message: bytes) -> None:
        await self.drain()
        self._begin(message)

    def _begin(self, message: bytes) -> None:
        # A coroutine runs up to its first wait when it is sent None, and goes on
        # from there when it is sent the next; here it waits for one future only.
        begun = self._write(message)
        try:
            self._left = begun.send(None)
        except StopIteration:
            return
        self._begun = begun

    def _end(self) -> None:
        begun, self._begun, self._left = self._begun, None, None
        if begun is not None:
            try:
                begun.send(None)
            except StopIteration:
                return
            raise RuntimeError("a write waits for more than one thing")


def _heard(left: asyncio.Future[Any]) -> None:
    if not left.cancelled():
        left.exception()  # else asyncio reports that nobody has looked at it


@types.coroutine
def _done(future: asyncio.Future[Any]) -> Generator[asyncio.Future[Any], None, None]:
    """Wait for a future in place of the coroutine that began to: what that coroutine handed out is handed on."""
    yield future
