"""Work that is not broken off because somebody who waits for it is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

T = TypeVar("T")


class Lasting(asyncio.Future[T]):
    """What is done elsewhere, and not undone by cancelling: a task that waits for it is cancelled once it is done.

    For work of which one has to know how it ended. ``asyncio.shield`` says so
    sooner, and takes a second future and one more turn of the loop for it.
    """

    __slots__ = ()

    def cancel(self, msg: Any | None = None) -> bool:  # noqa: ARG002 (asyncio's signature)
        """Do nothing; a task that hears of it is cancelled when this is done (asyncio.Task.cancel)."""
        return False


def lasting(work: asyncio.Future[T]) -> Awaitable[T]:
    """Return what waits for work and, if it is cancelled, leaves it to go on."""
    return work if isinstance(work, Lasting) else asyncio.shield(work)
