"""Asking from outside whether a process serves, and whether a port is free."""

from __future__ import annotations

import asyncio
import errno
import http
import http.client
import socket
from collections.abc import Awaitable, Callable
from contextlib import closing
from typing import Any

Probe = Callable[[], Awaitable[bool]]
"""Tells whether something serves now; raises nothing."""

TRY_SECONDS = 1.0


def reachable(host: str) -> str:
    """Return where something that listens on ``host`` is reached from this machine."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 (compared, not bound)


def grpc_health(host: str, port: int) -> Probe:
    """Probe with grpc.health.v1's Check of the whole server."""

    async def probe() -> bool:
        # Imported here: grpc must not delay what `up` has to say about faults.
        import grpc
        from grpc_health.v1 import health_pb2, health_pb2_grpc

        target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        # Every try connects anew; a shared pool would keep waiting after a refusal.
        async with grpc.aio.insecure_channel(target, options=(("grpc.use_local_subchannel_pool", 1),)) as channel:
            try:
                answer = await health_pb2_grpc.HealthStub(channel).Check(
                    health_pb2.HealthCheckRequest(), timeout=TRY_SECONDS
                )
            except grpc.aio.AioRpcError:
                return False
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    return probe


def listening(host: str, port: int) -> Probe:
    """Probe with a connection alone: for what asks for more than a prober can show, such as a certificate."""

    async def probe() -> bool:
        try:
            async with asyncio.timeout(TRY_SECONDS):
                _, writer = await asyncio.open_connection(host, port)
        except OSError:  # TimeoutError is one, too
            return False
        writer.close()
        return True

    return probe


def http_health(host: str, port: int, path: str, *, says: bytes = b"") -> Probe:
    """Probe with a GET that must be answered with 200, or, if given, with a body that holds ``says``."""

    def get() -> bool:
        with closing(http.client.HTTPConnection(host, port, timeout=TRY_SECONDS)) as connection:
            try:
                connection.request("GET", path)
                answer = connection.getresponse()
                return answer.status == http.HTTPStatus.OK or bool(says and says in answer.read())
            except (OSError, http.client.HTTPException):
                return False

    async def probe() -> bool:
        return await asyncio.to_thread(get)

    return probe


def is_free(host: str, port: int) -> bool:
    """Tell whether a process could listen on the port now, on every address of the host."""
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        return True  # the process itself knows best what to say of a host that does not exist
    return all(_can_listen(family, address) for family, _, _, _, address in addresses)


def _can_listen(family: int, address: tuple[Any, ...]) -> bool:
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        # As servers do: connections of an earlier run that linger are no obstacle.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(address)
            sock.listen()
        except OSError as error:
            # An address that this machine lacks (localhost as ::1 without IPv6) is in nobody's way.
            return error.errno not in (errno.EADDRINUSE, errno.EACCES)
    return True


def free_port() -> int:
    """Return a port of 127.0.0.1 that is free now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
