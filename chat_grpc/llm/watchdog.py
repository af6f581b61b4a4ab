"""Three time limits on a stream: to the first text, between texts, in total."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Self


@dataclass(frozen=True, slots=True)
class TimeLimits:
    """Seconds to the first piece of text, between two pieces, and in total."""

    first_token: float
    idle: float
    total: float


class Watchdog:
    """Calls ``on_timeout`` once when a limit passes while the stream waits for its upstream.

    A timer that is set anew for every token costs more than decoding one. This
    one is set rarely: when it rings, it looks at how long the wait has been and
    sleeps on for the rest. Time that the reader of the answer takes is not
    counted, except in the total. ``started`` is when the request was sent
    (time.monotonic(), which the loop's clock follows).
    """

    __slots__ = ("_handle", "_limits", "_loop", "_on_timeout", "_started", "_waiting_since", "expired", "last")

    def __init__(self, limits: TimeLimits, on_timeout: Callable[[], None], *, started: float) -> None:
        self._limits = limits
        self._on_timeout = on_timeout
        self._loop = asyncio.get_running_loop()
        self._started = started
        self._waiting_since: float | None = started
        self._handle: asyncio.TimerHandle | None = None
        self.last: float | None = None
        """When the last text arrived (time.monotonic()); None before the first."""
        self.expired: str = ""
        """Which limit passed: first_token, idle or total; "" while none has."""

    def __enter__(self) -> Self:
        self._handle = self._loop.call_at(min(self._due()), self._ring)
        return self

    def __exit__(self, *_: object) -> None:
        if self._handle is not None:
            self._handle.cancel()

    def waiting(self) -> None:
        """The stream waits for its upstream, which it may have done before."""
        if self._waiting_since is None:
            self._waiting_since = monotonic()

    def arrived(self) -> None:
        """Text arrived; the stream turns to its reader."""
        self.last = monotonic()
        self._waiting_since = None

    def passed(self) -> None:
        """Text arrived that takes its reader no time: the stream waits for its upstream again."""
        self.last = self._waiting_since = monotonic()

    def _due(self) -> tuple[float, float]:
        """Return when the limit of this wait passes, and when the total does."""
        limits = self._limits
        if self.last is None:
            wait = self._started + limits.first_token
        elif self._waiting_since is None:
            wait = monotonic() + limits.idle
        else:
            wait = self._waiting_since + limits.idle
        return wait, self._started + limits.total

    def _ring(self) -> None:
        now = monotonic()
        wait, total = self._due()
        if now < min(wait, total):
            self._handle = self._loop.call_at(min(wait, total), self._ring)
            return
        self._handle = None
        self.expired = "total" if total <= now else "first_token" if self.last is None else "idle"
        self._on_timeout()
