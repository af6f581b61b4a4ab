"""`chat-grpc memvid`: memvid.v1 over one .mv2 file, for machines without the Rust service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import grpc
import uvloop
from grpc_health.v1 import health, health_pb2_grpc

from chat_grpc._gen.memvid.v1 import health_pb2_grpc as memvid_health_pb2_grpc
from chat_grpc._gen.memvid.v1 import memvid_pb2_grpc
from chat_grpc.embedded import probes
from chat_grpc.embedded.errors import CommandError, report
from chat_grpc.embedded.memory import Memory
from chat_grpc.embedded.memvid_servicers import SERVICES, MemvidHealthServicer, MemvidServicer, OnThread
from chat_grpc.rpc.interceptor import ErrorInterceptor
from chat_grpc.rpc.lifecycle import InFlight, serve_until_signalled
from chat_grpc.rpc.reflection import add_reflection
from chat_grpc.settings import Settings
from chat_grpc.telemetry import logs

log = logs.get(__name__)

SERVER_OPTIONS = (
    # Without this a second server on the same port would silently share it.
    ("grpc.so_reuseport", 0),
    # The chat server pings every few seconds, also between questions, to notice an outage early.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
)

T = TypeVar("T")


def run(settings: Settings, *, file: str | None = None) -> int:
    """Serve a memory at ``memvid_grpc_url`` until a signal; return the exit code.

    Args:
        settings: says where to listen, and which file to serve.
        file: the .mv2 file, in place of the one that the settings name.
    """
    try:
        return uvloop.run(_serve(settings, Path(file or settings.memvid_file)))
    except CommandError as error:
        return report("memvid", error)


async def _serve(settings: Settings, path: Path) -> int:
    address = settings.memvid_grpc_url
    async with _open(path) as (memory, on_thread):
        in_flight = InFlight()
        server = grpc.aio.server(interceptors=[ErrorInterceptor(in_flight)], options=SERVER_OPTIONS)
        memvid_pb2_grpc.add_MemvidServiceServicer_to_server(MemvidServicer(memory, on_thread), server)
        memvid_health_pb2_grpc.add_HealthServicer_to_server(MemvidHealthServicer(memory.frame_count, path), server)
        health_servicer = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
        add_reflection(server, (*SERVICES, health.SERVICE_NAME))
        _bind(server, address)
        return await serve_until_signalled(
            server,
            health_servicer,
            service_names=SERVICES,
            drain_seconds=settings.drain_seconds,
            ready=lambda: log.info("serving", address=address, file=str(path), passages=memory.frame_count),
            in_flight=in_flight,
        )


@asynccontextmanager
async def _open(path: Path) -> AsyncIterator[tuple[Memory, OnThread]]:
    """Open a memory on a thread of its own: memvid's calls block, and its handle is for one thread."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="memvid") as executor:
        loop = asyncio.get_running_loop()

        async def on_thread(call: Callable[[], T]) -> T:
            return await loop.run_in_executor(executor, _without_panic, call)

        memory = await on_thread(lambda: Memory(path))
        try:
            yield memory, on_thread
        finally:
            await on_thread(memory.close)


def _without_panic(call: Callable[[], T]) -> T:
    try:
        return call()
    except Exception:
        raise
    except BaseException as error:
        # A panic of the Rust core is no Exception; as it is, it would pass by
        # every handler and leave the client waiting.
        raise RuntimeError("memvid panicked") from error


def _bind(server: grpc.aio.Server, address: str) -> None:
    host, _, port = address.rpartition(":")
    # grpc would take the half of "localhost" (IPv4, IPv6) that is free, and log the rest of it at length.
    free = probes.is_free(host.strip("[]"), int(port))
    try:
        if free:
            server.add_insecure_port(address)
    except RuntimeError:
        raise CommandError(
            f"{address} is no address of this machine; set CHAT_MEMVID_GRPC_URL to one that is."
        ) from None
    if not free:
        raise CommandError(
            f"port {port} is taken by another process; end it, or choose another with CHAT_MEMVID_GRPC_URL."
        )
