"""Deleting messages for their age, in small batches beside the answers."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from chat_grpc.conversation.sessions import Sessions
from chat_grpc.errors import StorageUnavailable
from chat_grpc.shared import SharedState
from chat_grpc.storage import Scope, Storage
from chat_grpc.telemetry import logs
from chat_grpc.telemetry.metrics import Metrics

log = logs.get(__name__)

BATCH = 100
"""Messages deleted at once: a few milliseconds in which no other write begins."""
PAUSE_SECONDS = 0.05
"""Between two batches, so that most of the time is left to answers."""
PARTS = 20
"""How many times it is looked in the span of an age, so that nothing is kept much longer than asked..."""
SHORTEST, LONGEST = 0.05, 600.0
"""... with these bounds, in seconds."""


class Retention:
    """Keeps messages for so many days and no longer.

    A conversation that loses a message goes on with what the history still
    holds of it.

    Args:
        storage: the history.
        sessions: the conversations that have not ended.
        days: how old a message may get.
        metrics: where it is counted what was deleted.
        shared: what other servers know of those conversations; None where there are none.
    """

    def __init__(
        self,
        storage: Storage,
        sessions: Sessions,
        *,
        days: float,
        metrics: Metrics,
        shared: SharedState | None = None,
    ) -> None:
        self._storage = storage
        self._sessions = sessions
        self._age = timedelta(days=days)
        self._metrics = metrics
        self._shared = shared
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look for old messages, now and again and again."""
        self._task = asyncio.ensure_future(self._run())

    async def close(self) -> None:
        """Stop; what has not been deleted yet is at the next start."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        pause = min(max(self._age.total_seconds() / PARTS, SHORTEST), LONGEST)
        while True:
            try:
                await self._sweep()
            except StorageUnavailable:
                pass  # which the storage has logged; it is tried again
            except Exception as error:  # noqa: BLE001 (nothing may have it stop unnoticed)
                log.fault("old messages could not be deleted", error)
            await asyncio.sleep(pause)

    async def _sweep(self) -> None:
        before = datetime.now(UTC) - self._age
        deleted, count = 0, BATCH
        try:
            while count >= BATCH:
                expired = await self._storage.expire(before, limit=BATCH)
                count = expired.count
                deleted += count
                for session_id in expired.sessions:
                    self._sessions.forget(scope := Scope(session_id=session_id))
                    if self._shared is not None:
                        await self._shared.forget(scope)
                self._metrics.expired(count)
                await asyncio.sleep(PAUSE_SECONDS if count else 0)
        finally:
            if deleted:
                log.info("messages were deleted for their age", count=deleted, days=self._age / timedelta(days=1))
