"""Comments in the silences of a stream."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self


class KeepAlive:
    """Says a comment after every ``interval`` seconds of silence, from the first event on.

    The stream's events and the comments go out by the same call, which takes one
    message at a time, so they take turns: ``await turn()``, send, ``done()``.
    While events flow, all that an event costs is a look at the clock; the one
    timer is moved on only when it fires, and no task is made.
    """

    def __init__(self, say: Callable[[], Awaitable[None]], interval: float) -> None:
        self._say = say
        self._interval = interval
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._saying: asyncio.Task[None] | None = None
        self._sending = False
        self._last = 0.0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        await self._said()

    async def turn(self) -> None:
        """Wait until no comment is under way, and hold the next one back until ``done``."""
        if self._saying is not None:
            await self._said()
        self._sending = True

    def done(self) -> None:
        """Note that an event was sent: the silence begins now."""
        self._sending = False
        self._last = self._loop.time()
        if self._timer is None:
            self._wait()

    async def _said(self) -> None:
        """Wait for the comment that is under way; cancelling it would not take it back.

        When it fails, the client has left: sending the next event will say so.
        """
        if self._saying is not None:
            await asyncio.gather(self._saying, return_exceptions=True)

    def _wait(self) -> None:
        self._timer = self._loop.call_at(self._last + self._interval, self._fire)

    def _fire(self) -> None:
        now = self._loop.time()
        if self._sending:
            # The client does not read; it can't be told anything now.
            self._last = now
        if now < self._last + self._interval:
            self._wait()
        else:
            self._saying = self._loop.create_task(self._comment())

    async def _comment(self) -> None:
        await self._say()
        self._saying = None
        self._last = self._loop.time()
        self._wait()
