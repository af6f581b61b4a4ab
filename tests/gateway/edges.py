"""A real Envoy, run by tests."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from chat_grpc.embedded import edge
from chat_grpc.settings import Settings
from tests.support.process import free_port

Change = Callable[[dict[str, Any]], None]
"""Changes a configuration in place."""


@dataclass
class Edge:
    """An Envoy that runs."""

    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def requests(self, **wanted: object) -> list[dict[str, Any]]:
        """Return the lines of the access log that hold these fields, as soon as there are any."""
        deadline = time.monotonic() + 10  # Envoy writes the log four times a second
        while time.monotonic() < deadline:
            found = [line for line in self._lines() if wanted.items() <= line.items()]
            if found:
                return found
            time.sleep(0.05)
        return pytest.fail(f"no line of the access log has {wanted}:\n{self.log.read_text()}")

    def _lines(self) -> Iterator[dict[str, Any]]:
        for line in self.log.read_text().splitlines():
            if line.startswith("{") and line.endswith("}"):
                yield json.loads(line)


@asynccontextmanager
async def running_edge(
    grpc_port: int, folder: Path, change: Change | None = None, **settings: Any
) -> AsyncIterator[Edge]:
    """Run an Envoy in front of the server on a port; its output goes to a file in ``folder``."""
    port = free_port()
    config = edge.render(Settings(http_port=port, grpc_port=grpc_port, **settings))
    if change is not None:
        change(config)
    log = folder / f"envoy-{port}.log"
    command = [str(edge.binary()), *edge.arguments(config)]
    # To a file: a pipe that nobody reads would stop Envoy once it is full.
    with log.open("w") as out:
        process = await asyncio.create_subprocess_exec(*command, stdout=out, stderr=subprocess.STDOUT)
    try:
        await _listening(process, port, log)
        yield Edge(port, log)
    finally:
        if process.returncode is None:
            process.terminate()
        async with asyncio.timeout(10):
            await process.wait()


async def _listening(process: asyncio.subprocess.Process, port: int, log: Path) -> None:
    """Wait until Envoy does; it asks the server for its health first, which may be one of this very loop."""
    while process.returncode is None:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionRefusedError:
            await asyncio.sleep(0.01)
            continue
        writer.close()
        return
    said = await asyncio.to_thread(log.read_text)
    pytest.fail(f"Envoy ended with {process.returncode}: {said}")
