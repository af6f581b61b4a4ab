"""Sending the messages of an answer without waiting for each to be on its way."""

from __future__ import annotations

import asyncio
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any

from chat_grpc.rpc.delta import delta_bytes

MAX_QUEUE = 3
"""Messages that may follow one that is on its way; whoever has more waits."""

TWO_WAITS = "a write waits for more than one thing"


class EventWriter:
    """Begins to write a message at once; the next ones follow as soon as it is on its way.

    grpc.aio takes one message of a call at a time. Awaiting each write has the
    task that reads the model woken up once more for every token, just to hear
    that the token has left; tokens are much further apart than that takes. The
    few messages that come together, such as the first two, follow each other
    without that task, too.

    Args:
        write: the call's ``context.write``, for messages in their wire form.
    """

    __slots__ = ("_begun", "_fault", "_left", "_queue", "_write")

    def __init__(self, write: Callable[[bytes], Coroutine[Any, Any, None]]) -> None:
        self._write = write
        self._begun: Coroutine[Any, Any, None] | None = None
        self._left: asyncio.Future[Any] | None = None
        """Done when grpc has taken what was begun."""
        self._queue: list[bytes] = []
        """What follows it."""
        self._fault: BaseException | None = None

    def give(self, text: str) -> Awaitable[None] | None:
        """Begin to write a piece of text; what is returned, if anything, is to be awaited before the next.

        Text waits for nothing but its turn: what the model writes meanwhile joins the next piece.

        Raises:
            Exception: the call has ended.
        """
        left = self._left
        if left is not None and (self._queue or not left.done()):
            return self._begin_later(delta_bytes(text))
        self._begin(delta_bytes(text))
        return None

    def begin(self, message: bytes) -> Awaitable[None] | None:
        """Begin to write a message, or have it follow; what is returned, if anything, is to be awaited before the next.

        Raises:
            Exception: the call has ended.
        """
        left, queue = self._left, self._queue
        if left is not None and (queue or not left.done()):
            if len(queue) >= MAX_QUEUE:
                return self._begin_later(message)
            queue.append(message)
            if len(queue) == 1:
                left.add_done_callback(self._next)
            return None
        self._begin(message)
        return None

    async def drain(self) -> None:
        """Wait until all that was begun is on its way.

        Raises:
            Exception: the call has ended.
        """
        while (left := self._left) is not None:
            if not left.done():
                await _done(left)
            elif self._queue:
                await asyncio.sleep(0)  # its turn comes with the callbacks of this future
            else:
                self._end()
        if self._fault is not None:
            raise self._fault

    def leave(self) -> None:
        """Be done with it; if the last write fails, or has failed, nobody needs to hear of it any more."""
        self._queue.clear()
        if self._left is not None:
            self._left.add_done_callback(_heard)

    async def _begin_later(self, message: bytes) -> None:
        await self.drain()
        self._begin(message)

    def _begin(self, message: bytes) -> None:
        """Begin to write a message; what was begun before is on its way."""
        # A coroutine runs up to its first wait when it is sent None, and goes on
        # from there when it is sent the next; here it waits for one future only.
        begun = self._begun
        if begun is None and self._fault is not None:
            raise self._fault
        try:
            if begun is not None:  # as in _end; one call fewer for each token
                try:
                    begun.send(None)
                except StopIteration:
                    pass
                else:
                    raise RuntimeError(TWO_WAITS)
            self._begun = begun = self._write(message)
            self._left = begun.send(None)
        except StopIteration:
            self._begun = self._left = None  # it did not have to wait
        except BaseException:
            self._begun = self._left = None
            raise

    def _next(self, _: asyncio.Future[Any]) -> None:
        """Write what follows."""
        try:
            self._end()
            while self._queue and self._left is None:
                self._begin(self._queue.pop(0))
        except BaseException as error:  # noqa: BLE001 (whatever it is, whoever writes next hears of it)
            self._fault = error
            self._queue.clear()
        if self._queue and self._left is not None:
            self._left.add_done_callback(self._next)

    def _end(self) -> None:
        begun, self._begun, self._left = self._begun, None, None
        if begun is not None:
            try:
                begun.send(None)
            except StopIteration:
                return
            raise RuntimeError(TWO_WAITS)


def _heard(left: asyncio.Future[Any]) -> None:
    if not left.cancelled():
        left.exception()  # else asyncio reports that nobody has looked at it


@types.coroutine
def _done(future: asyncio.Future[Any]) -> Generator[asyncio.Future[Any], None, None]:
    """Wait for a future in place of the coroutine that began to: what that coroutine handed out is handed on."""
    yield future
