"""`chat-grpc up`: memvid, the server and Envoy as real processes from one command."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import psutil
import pytest

from chat_grpc.embedded import probes
from tests.cli.conftest import HANG_GUARD, Cli, clean_environment

ONE_PASSAGE = "# Penguins\n\nPenguins live in the south and can't fly.\n"
PROFILE = "name: birds\ntitle: Birds\nsuggested_questions:\n  - question: Can penguins fly?\n    category: birds\n"


class Up:
    """A running `chat-grpc up`."""

    def __init__(self, process: asyncio.subprocess.Process, environment: dict[str, str]) -> None:
        self.process = process
        self.environment = environment
        self.output = ""

    async def says(self, text: str) -> None:
        """Read the output until the text is in it."""
        assert self.process.stdout is not None
        async with asyncio.timeout(HANG_GUARD):
            while text not in self.output:
                data = await self.process.stdout.read(65536)
                assert data, f"the output ended without {text!r}: {self.output}"
                self.output += data.decode()

    async def ends(self) -> int:
        """Read the output to its end; return the exit code."""
        assert self.process.stdout is not None
        async with asyncio.timeout(HANG_GUARD):
            self.output += (await self.process.stdout.read()).decode()
            return await self.process.wait()

    def children(self) -> list[psutil.Process]:
        """Return the processes below."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def url(self, path: str) -> str:
        """Return the address of a route."""
        return f"http://127.0.0.1:{self.environment['CHAT_HTTP_PORT']}{path}"


def free_ports() -> dict[str, str]:
    """Return settings with free ports. All are found before any is let go, so that they differ."""
    with socket.socket() as one, socket.socket() as two, socket.socket() as three:
        ports = []
        for each in (one, two, three):
            each.bind(("127.0.0.1", 0))
            ports.append(each.getsockname()[1])
    return {
        "CHAT_MEMVID_GRPC_URL": f"127.0.0.1:{ports[0]}",
        "CHAT_GRPC_PORT": str(ports[1]),
        "CHAT_HTTP_PORT": str(ports[2]),
    }


@pytest.fixture
async def ready(cli: Cli, tmp_path: Path) -> None:
    """A memory of one passage, so that `up` need not make the big one."""
    (tmp_path / "birds.md").write_text(ONE_PASSAGE, encoding="utf-8")
    (tmp_path / "profile.yaml").write_text(PROFILE, encoding="utf-8")
    done = await cli("ingest", "birds.md", "--profile", "profile.yaml", "--out", "data/memory.mv2")
    assert done.code == 0, done.stderr


@asynccontextmanager
async def up(folder: Path, **variables: str) -> AsyncIterator[Up]:
    environment = clean_environment(**{**free_ports(), **variables})
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "chat_grpc", "up"),
        cwd=folder,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    running = Up(process, environment)
    try:
        yield running
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            await running.ends()


async def ask(running: Up, question: str) -> dict[str, object]:
    async with (
        aiohttp.ClientSession() as session,
        session.post(running.url("/api/v1/chat"), json={"message": question, "stream": False}) as response,
    ):
        assert response.status == 200
        body: dict[str, object] = await response.json()
        return body


async def health(running: Up) -> dict[str, object]:
    async with aiohttp.ClientSession() as session, session.get(running.url("/api/v1/health")) as response:
        body: dict[str, object] = await response.json()
        return body


@pytest.mark.e2e
@pytest.mark.usefixtures("ready")
async def test_from_start_to_stop(tmp_path: Path) -> None:
    async with up(tmp_path) as running:
        await running.says("Ctrl-C stops everything")
        assert len(running.children()) == 3
        answer = await ask(running, "Can penguins fly?")
        assert "fly" in str(answer["content"])
        assert (tmp_path / "data" / "chat.db").exists()

        # What it says to try can be copied as it stands.
        curl = re.search(r"^  (curl .*)$", running.output, re.MULTILINE)
        assert curl is not None
        process = await asyncio.create_subprocess_shell(curl[1] + " --silent", stdout=asyncio.subprocess.PIPE)
        stdout, _ = await process.communicate()
        events = [json.loads(line[6:]) for line in stdout.decode().splitlines() if line.startswith("data: ")]
        assert [events[0]["type"], events[-1]["type"]] == ["retrieval", "done"]

        children = running.children()
        running.process.send_signal(signal.SIGINT)
        assert await running.ends() == 0
        assert not any(child.is_running() for child in children)
        assert "did not stop" not in running.output


@pytest.mark.e2e
@pytest.mark.usefixtures("ready")
async def test_memvid_dies_and_comes_back(tmp_path: Path) -> None:
    async with up(tmp_path) as running:
        await running.says("Ctrl-C stops everything")
        before = {child.pid for child in running.children()}
        memvid = next(child for child in running.children() if child.cmdline()[-1] == "memvid")
        memvid.kill()
        await running.says("memvid was ended by SIGKILL; starting it again in 5 s")
        answer = await ask(running, "Can penguins fly?")
        assert answer["chunks_retrieved"] == 0
        assert (await health(running))["status"] == "degraded"
        await running.says("memvid serves again")
        async with asyncio.timeout(HANG_GUARD):
            while (await health(running))["status"] != "healthy":
                await asyncio.sleep(0.1)
        assert (await ask(running, "Can penguins fly?"))["chunks_retrieved"] == 1
        assert before - {memvid.pid} < {child.pid for child in running.children()}


@pytest.mark.e2e
@pytest.mark.usefixtures("ready")
async def test_a_server_that_can_not_start_ends_all_and_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder", encoding="utf-8")
    async with up(tmp_path, CHAT_DATABASE_URL="sqlite+aiosqlite:///./file/chat.db") as running:
        await running.says("server ended with exit code 1. Its last lines:")
        assert await running.ends() == 1
        assert "Traceback" not in running.output


@pytest.mark.usefixtures("ready")
@pytest.mark.parametrize("name", ["CHAT_GRPC_PORT", "CHAT_HTTP_PORT", "CHAT_MEMVID_GRPC_URL"])
async def test_a_port_that_is_taken(cli: Cli, name: str) -> None:
    settings = free_ports()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        settings[name] = f"127.0.0.1:{port}" if name.endswith("URL") else str(port)
        done = await cli("up", **settings)
    assert done.code == 1
    assert done.stderr.count("\n") == 1
    assert f"port {port} is taken" in done.stderr
    assert name in done.stderr


async def test_a_memory_that_can_not_be_made(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder", encoding="utf-8")
    done = await cli("up", **free_ports(), CHAT_MEMVID_FILE="file/memory.mv2")
    assert done.code == 1
    assert done.stderr.splitlines()[-1] == "chat-grpc up: file/memory.mv2 could not be made."
    assert "Traceback" not in done.stderr


def test_ports(unused_tcp_port: int) -> None:
    assert probes.is_free("127.0.0.1", unused_tcp_port)
    assert probes.is_free("localhost", unused_tcp_port)
    with socket.socket() as other:
        other.bind(("127.0.0.1", unused_tcp_port))
        other.listen()
        for host in ("127.0.0.1", "localhost", "0.0.0.0"):  # noqa: S104 (probed, not served)
            assert not probes.is_free(host, unused_tcp_port)


async def test_probes_of_nothing(unused_tcp_port: int) -> None:
    assert not await probes.grpc_health("127.0.0.1", unused_tcp_port)()
    assert not await probes.http_health("127.0.0.1", unused_tcp_port, "/")()
