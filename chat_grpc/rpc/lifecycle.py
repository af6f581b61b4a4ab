"""Serving until a signal, then draining. The first signal drains, the second exits."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Sequence
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2

from chat_grpc.errors import Draining
from chat_grpc.telemetry import logs

log = logs.get(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)
GOODBYE_SECONDS = 2.0
"""What a call whose time is over gets to keep its partial answer and tell its client."""


class InFlight:
    """The calls that are being answered, each in a task of its own."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._idle: asyncio.Event | None = None
        """Set when there is none; made when somebody waits for that."""
        self._closed = False

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._tasks)

    def enter(self) -> asyncio.Task[Any]:
        """Count the current task as a call, and return it: ``leave`` is owed for it."""
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a call is answered in a task")
        self._tasks.add(task)
        return task

    def leave(self, task: asyncio.Task[Any]) -> None:
        """Count a task no more."""
        self._tasks.discard(task)
        if not self._tasks and self._idle is not None:
            self._idle.set()

    def close(self) -> None:
        """Take no more calls."""
        self._closed = True

    def admit(self) -> None:
        """Raise Draining once ``close`` was called: HTTP/2 lets a client that has not heard yet send calls."""
        if self._closed:
            raise Draining

    async def idle(self) -> None:
        """Return as soon as there is none."""
        if self._tasks:
            if self._idle is None or self._idle.is_set():
                self._idle = asyncio.Event()
            await self._idle.wait()

    def end(self) -> None:
        """End all of them: each tells its client that the server is stopping."""
        for task in self._tasks:
            task.cancel(Draining.cancel_message)


async def serve_until_signalled(
    server: grpc.aio.Server,
    health_servicer: health.aio.HealthServicer,
    *,
    service_names: Sequence[str],
    drain_seconds: float,
    ready: Callable[[], None],
    in_flight: InFlight | None = None,
) -> int:
    """Start a server that is bound to its ports, and stop it well.

    Once it serves, "" and ``service_names`` are SERVING and ``ready`` is
    called. On SIGTERM or SIGINT all turn NOT_SERVING, new calls are refused,
    and the calls in flight get ``drain_seconds`` to finish; those that have not
    by then end with UNAVAILABLE. ``in_flight`` holds those worth waiting for:
    without it, an idle health Watch would hold the process for the whole time.

    Returns:
        The exit code: 0 after a drain. A second signal exits at once with
        128 + its number, as a shell reports a process that a signal ended.
    """
    stop = asyncio.Event()

    def on_signal(number: signal.Signals) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    loop = asyncio.get_running_loop()
    for number in SIGNALS:
        loop.add_signal_handler(number, on_signal, number)
    try:
        await server.start()
        for name in ("", *service_names):
            await health_servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
        ready()
        await stop.wait()
        log.info("draining", seconds=drain_seconds, in_flight=in_flight.count if in_flight else None)
        if in_flight is not None:
            in_flight.close()
        await health_servicer.enter_graceful_shutdown()
        await _drain(server, drain_seconds, in_flight)
        log.info("stopped")
    finally:
        for number in SIGNALS:
            loop.remove_signal_handler(number)
    return 0


async def _drain(server: grpc.aio.Server, seconds: float, in_flight: InFlight | None) -> None:
    if in_flight is None:
        await server.stop(seconds)
        return
    # The server still listens, so that new calls are refused in so many words
    # and probes hear NOT_SERVING; stopping it now would cancel those that a
    # client has sent and the server not yet seen.
    for ended in (False, True):
        if ended:
            log.warning("ending the calls that did not finish", count=in_flight.count)
            in_flight.end()
        try:
            async with asyncio.timeout(GOODBYE_SECONDS if ended else seconds):
                await in_flight.idle()
        except TimeoutError:
            continue
        break
    await server.stop(None)  # what is left is health watches and reflection
