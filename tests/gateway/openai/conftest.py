"""The whole server behind the real Envoy, as OpenAI's SDKs see it."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import openai
import pytest

from chat_grpc.embedded import edge
from chat_grpc.settings import Settings
from tests.support.fixtures import StartService
from tests.support.process import free_port
from tests.support.service import Service

JS = Path(__file__).with_name("js")
NODE = 20
"""The oldest major version of node that the JavaScript SDK runs on."""


@dataclass(frozen=True)
class Edge:
    """A server and the Envoy in front of it."""

    service: Service
    url: str

    @property
    def base_url(self) -> str:
        """What an SDK is given."""
        return f"{self.url}/v1"

    def client(self, *, retries: int = 0) -> openai.AsyncOpenAI:
        """Make a client of the official SDK; it needs some key, and any will do."""
        return openai.AsyncOpenAI(base_url=self.base_url, api_key="any", max_retries=retries, timeout=60)

    def http(self) -> aiohttp.ClientSession:
        """Make a client that looks at the bytes."""
        return aiohttp.ClientSession(self.url, timeout=aiohttp.ClientTimeout(60))


StartEdge = Callable[..., AbstractAsyncContextManager[Edge]]


@pytest.fixture
def start_edge(start: StartService) -> StartEdge:
    """Start the server and an Envoy in front of it; keywords are settings."""

    @asynccontextmanager
    async def starting(**settings: str) -> AsyncIterator[Edge]:
        async with start(**settings) as service, envoy(int(service.address.rpartition(":")[2])) as url:
            yield Edge(service, url)

    return starting


@asynccontextmanager
async def envoy(grpc_port: int) -> AsyncIterator[str]:
    """Run an Envoy in front of a port; its address is yielded."""
    port = free_port()
    config = edge.render(Settings(http_port=port, grpc_port=grpc_port))
    process = await asyncio.create_subprocess_exec(edge.binary(), *edge.arguments(config))
    try:
        await _listening(port, process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        await process.wait()


@pytest.fixture
async def running(start_edge: StartEdge) -> AsyncIterator[Edge]:
    """The server over ``model`` and ``memory``, behind Envoy, with the settings at their defaults."""
    async with start_edge() as started:
        yield started


@pytest.fixture(scope="session")
def js_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where the JavaScript SDK is installed, in the version that the lock file names."""
    import subprocess

    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None or _major(node) < NODE:
        reason = f"node {NODE} or later, and npm, are needed on the PATH to run the JavaScript SDK"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("js") / "js"
    shutil.copytree(JS, folder)
    done = subprocess.run(
        [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return folder


def _major(node: str) -> int:
    import subprocess

    return int(subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout[1:].split(".")[0])


async def _listening(port: int, process: asyncio.subprocess.Process) -> None:
    async with asyncio.timeout(60):
        while True:
            assert process.returncode is None
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
            except ConnectionRefusedError:
                await asyncio.sleep(0.02)
                continue
            return
