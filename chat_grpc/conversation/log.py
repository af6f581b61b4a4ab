"""What one task writes and any number read, each from the start, each as it comes."""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

T = TypeVar("T")


class Place:
    """Where a reader is: how much it has read, and, while it has read all and waits for more, what it waits for."""

    __slots__ = ("index", "waiting")

    def __init__(self) -> None:
        self.index = 0
        self.waiting: asyncio.Future[None] | None = None


class Log(Generic[T]):
    """Items in the order they were written, and how the writing ended.

    Writing never waits: a reader that is slow finds more when it comes back.

    Args:
        items: where they are kept; whoever else has the list may write into it while nobody reads.

    Attributes:
        append_read: writes one more that whoever waits is given by other means, and wakes nobody. It is the list's
            own method, as each token passes through it.
    """

    __slots__ = ("_error", "_items", "_waiting", "append_read", "closed")

    def __init__(self, items: list[T] | None = None) -> None:
        self._items: list[T] = [] if items is None else items
        self._error: BaseException | None = None
        self._waiting: list[Place] = []
        self.append_read = self._items.append
        self.closed = False

    def append(self, item: T) -> None:
        """Write one more."""
        items = self._items
        items.append(item)
        if self._waiting:
            self._wake(len(items) - 1)

    def close(self, error: BaseException | None = None) -> None:
        """Write no more; readers that come to the end find it, or the error."""
        self.closed = True
        self._error = error
        self._wake(len(self._items))

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
            place.waiting = waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(place)
            await waiter
        news = self._items[place.index :]
        place.index += len(news)
        return news

    def _wake(self, read: int) -> None:
        """Wake all who wait; so many items they have read, or been given."""
        waiting, self._waiting = self._waiting, []
        for place in waiting:
            place.index = read
            waiter, place.waiting = place.waiting, None
            if waiter is not None and not waiter.done():  # its reader may have left
                waiter.set_result(None)
