"""Serving until a signal, then draining. The first signal drains, the second exits."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Sequence

import grpc
from grpc_health.v1 import health, health_pb2

from chat_grpc.telemetry import logs

log = logs.get(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class InFlight:
    """How many calls are being answered; ``idle`` waits until none is."""

    def __init__(self) -> None:
        self.count = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def __enter__(self) -> None:
        self.count += 1
        self._idle.clear()

    def __exit__(self, *_: object) -> None:
        self.count -= 1
        if not self.count:
            self._idle.set()

    async def idle(self) -> None:
        """Return as soon as no call is being answered."""
        await self._idle.wait()


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
    and the calls in flight get ``drain_seconds`` to finish. ``in_flight``
    counts those worth waiting for: without it, an idle health Watch would hold
    the process for the whole time.

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
        await health_servicer.enter_graceful_shutdown()
        await _drain(server, drain_seconds, in_flight)
        log.info("stopped")
    finally:
        for number in SIGNALS:
            loop.remove_signal_handler(number)
    return 0


async def _drain(server: grpc.aio.Server, seconds: float, in_flight: InFlight | None) -> None:
    stopping = asyncio.ensure_future(server.stop(seconds))
    if in_flight is not None:
        idle = asyncio.ensure_future(in_flight.idle())
        await asyncio.wait((stopping, idle), return_when=asyncio.FIRST_COMPLETED)
        idle.cancel()
        await server.stop(None)  # what is left is health watches and reflection
    await stopping
