"""Tasks that go on when the caller that began them has left."""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

Work = TypeVar("Work", bound="asyncio.Future[Any]")


class Tasks:
    """Holds on to tasks that must come to their end also when the caller leaves meanwhile."""

    def __init__(self) -> None:
        self._running: set[asyncio.Future[Any]] = set()

    def __len__(self) -> int:
        return len(self._running)

    def track(self, task: Work) -> Work:
        """Hold on to a task, or to what is done elsewhere, until it ends, and return it."""
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def ended(self) -> None:
        """Wait until all have ended, those too that are begun meanwhile."""
        while self._running:
            await asyncio.wait(self._running)
