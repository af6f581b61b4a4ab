"""What one task writes and any number read, each from the start, each as it comes."""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

T = TypeVar("T")


class Place:
    """Where a reader is: how much it has read, and whether it has read all and waits for more."""

    __slots__ = ("index", "waiting")

    def __init__(self) -> None:
        self.index = 0
        self.waiting = False


class Log(Generic[T]):
    """Items in the order they were written, and how the writing ended.

    Writing never waits: a reader that is slow finds more when it comes back.

    Args:
        items: where they are kept; whoever else has the list may write into it while nobody reads.
    """

    __slots__ = ("_error", "_items", "_waiting", "closed")

    def __init__(self, items: list[T] | None = None) -> None:
        self._items: list[T] = [] if items is None else items
        self._error: BaseException | None = None
        self._waiting: list[asyncio.Future[None]] = []
        self.closed = False

    def append(self, item: T) -> None:
        """Write one more."""
        self._items.append(item)
        if self._waiting:
            self._wake()

    def append_read(self, item: T, place: Place) -> bool:
        """Write one more that the reader at ``place`` is given by other means, if it has read all there is, and waits.

        It sleeps on. False, with nothing written, if it does not.
        """
        items = self._items
        if not place.waiting or place.index != len(items):
            return False
        items.append(item)
        place.index += 1
        return True

    def close(self, error: BaseException | None = None) -> None:
        """Write no more; readers that come to the end find it, or the error."""
        self.closed = True
        self._error = error
        self._wake()

    async def more(self, place: Place) -> list[T]:
        """Return what has been written after ``place``, as soon as there is something; nothing at the end.

        Raises:
            BaseException: what the log was closed with.
        """
        while place.index == len(self._items):
            if self.closed:
                if self._error is not None:
                    raise self._error
                return []
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            place.waiting = True
            await waiter
            place.waiting = False
        news = self._items[place.index :]
        place.index += len(news)
        return news

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.done():  # its reader may have left
                waiter.set_result(None)
