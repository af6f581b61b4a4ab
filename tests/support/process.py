"""Real processes of this project, started and ended by the tests."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Process:
    """A running command of ``chat-grpc``, with all that it has printed."""

    def __init__(self, inner: asyncio.subprocess.Process) -> None:
        self.inner = inner
        self.output = ""
        self._reading = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        assert self.inner.stdout is not None
        while line := await self.inner.stdout.readline():
            self.output += line.decode(errors="replace")

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.inner.send_signal(number)

    async def wait(self, seconds: float = 30) -> int:
        """Wait for its end and return the exit code."""
        async with asyncio.timeout(seconds):
            code = await self.inner.wait()
            await self._reading
        return code

    async def printed(self, text: str, seconds: float = 60) -> None:
        """Wait until it has printed a text."""
        try:
            async with asyncio.timeout(seconds):
                while text not in self.output:
                    assert not self._reading.done(), f"it ended with {self.inner.returncode}"
                    await asyncio.sleep(0.02)
        except (TimeoutError, AssertionError) as error:
            raise AssertionError(f"did not print {text!r}; it printed:\n{self.output}") from error


@asynccontextmanager
async def chat_grpc(*arguments: str, folder: Path, **environ: str) -> AsyncIterator[Process]:
    """Run ``chat-grpc ARGUMENTS`` in a folder, with no CHAT_ settings but those given."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("CHAT_", "COV_CORE"))}
    inner = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "chat_grpc",
        *arguments,
        cwd=folder,
        env=clean | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "CHAT_LOG_FORMAT": "text"} | environ,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    process = Process(inner)
    try:
        yield process
    finally:
        if inner.returncode is None:
            inner.terminate()
            try:
                await process.wait(10)
            except TimeoutError:
                with suppress(ProcessLookupError):
                    inner.kill()
                await inner.wait()


async def serving(address: str, service: str = "", seconds: float = 60) -> None:
    """Wait until grpc.health.v1 says SERVING."""
    async with grpc.aio.insecure_channel(address, [("grpc.max_reconnect_backoff_ms", 100)]) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        async with asyncio.timeout(seconds):
            while True:
                with suppress(grpc.aio.AioRpcError):
                    answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
                    if answer.status == health_pb2.HealthCheckResponse.SERVING:
                        return
                await asyncio.sleep(0.02)
