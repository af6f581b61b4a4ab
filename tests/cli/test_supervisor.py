"""What `up` is built on: small HTTP servers as processes, and what becomes of them."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest

from chat_grpc.embedded import probes
from tests.cli.conftest import HANG_GUARD

# Runs the programs that its arguments name, "name=port"; pauses are short, so that tests are.
SUPERVISOR = """
import asyncio, os, sys
from chat_grpc.embedded import probes, supervisor
from chat_grpc.embedded.supervisor import Program, Supervisor

supervisor.FIRST_PAUSE, supervisor.LONGEST_PAUSE = 0.2, 0.4
supervisor.START_SECONDS = 1.0 if "mute" in sys.argv[1] else 30.0
SERVE = '''
import http.server, sys
from chat_grpc.embedded import lifeline
lifeline.follow_parent()
print("serving", flush=True)
handler = type("Handler", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), handler).serve_forever()
'''
BAD = "print('this is why', flush=True); raise SystemExit(3)"
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True);" + SERVE
MUTE = "import time; print('mute', flush=True); time.sleep(600)"
PARENT = "import subprocess, sys; subprocess.Popen(['sleep', '600']);" + SERVE
LONG = "print('x' * 300_000, flush=True);" + SERVE
CODES = {"bad": BAD, "deaf": DEAF, "mute": MUTE, "parent": PARENT, "long": LONG}
programs = []
for argument in sys.argv[1:]:
    name, port = argument.split("=")
    programs.append(
        Program(
            name=name,
            command=[sys.executable, "-c", CODES.get(name, SERVE), port],
            host="127.0.0.1",
            port=int(port),
            serves=probes.http_health("127.0.0.1", int(port), "/"),
            needed_first=name.startswith("first"),
            stop_seconds=1.0,
        )
    )
run = Supervisor(programs, dict(os.environ)).run(lambda: print("ANNOUNCED", flush=True))
sys.exit(asyncio.run(run))
"""


class Supervised:
    """A supervisor's process."""

    def __init__(self, process: asyncio.subprocess.Process, ports: dict[str, int]) -> None:
        self.process = process
        self.ports = ports
        self.output = ""

    async def says(self, text: str) -> None:
        """Read the output until the text is in it; what was read before does not count again."""
        assert self.process.stdout is not None
        read = ""
        async with asyncio.timeout(HANG_GUARD):
            while text not in read:
                data = await self.process.stdout.read(65536)
                assert data, f"the output ended without {text!r}: {self.output}"
                read += data.decode()
                self.output += data.decode()

    async def ends(self) -> int:
        """Read the output to its end; return the exit code."""
        assert self.process.stdout is not None
        async with asyncio.timeout(HANG_GUARD):
            self.output += (await self.process.stdout.read()).decode()
            return await self.process.wait()

    def children(self) -> dict[int, psutil.Process]:
        """Return the processes below, by pid."""
        return {child.pid: child for child in psutil.Process(self.process.pid).children(recursive=True)}

    def child(self, name: str) -> psutil.Process:
        """Return the process of a program."""
        port = str(self.ports[name])
        return next(child for child in self.children().values() if child.cmdline()[-1] == port)

    async def serves(self, name: str) -> None:
        """Wait until a program serves."""
        probe = probes.http_health("127.0.0.1", self.ports[name], "/")
        async with asyncio.timeout(HANG_GUARD):
            while not await probe():
                await asyncio.sleep(0.02)


Start = Callable[..., "asyncio.Future[Supervised]"]


@pytest.fixture
async def supervise(tmp_path: Path) -> AsyncIterator[Start]:
    started: list[Supervised] = []

    async def start(*names: str) -> Supervised:
        ports = {name: probes.free_port() for name in names}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", SUPERVISOR, *(f"{name}={port}" for name, port in ports.items())),
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        started.append(Supervised(process, ports))
        return started[-1]

    yield start  # type: ignore[misc]  # a coroutine function; its name is all that the tests need
    for running in started:
        if running.process.returncode is None:
            running.process.send_signal(signal.SIGTERM)
            await running.ends()


async def gone(processes: list[psutil.Process]) -> None:
    """Wait until none of the processes runs."""
    async with asyncio.timeout(HANG_GUARD):
        while any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in processes):
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_a_signal_stops_everything(supervise: Start, number: signal.Signals) -> None:
    up = await supervise("one", "two")
    await up.says("ANNOUNCED")
    children = list(up.children().values())
    assert len(children) == 2
    up.process.send_signal(number)
    assert await up.ends() == 0
    await gone(children)
    assert "one | serving" in up.output
    assert "two | serving" in up.output


async def test_one_that_dies_is_started_again_and_the_others_stay(supervise: Start) -> None:
    up = await supervise("one", "two")
    await up.says("ANNOUNCED")
    other = up.child("two")
    for pause in ("0.2", "0.4", "0.4"):
        up.child("one").kill()
        await up.says(f"one was ended by SIGKILL; starting it again in {pause} s")
        await up.says("one serves again")
    await up.serves("one")
    assert up.child("two").pid == other.pid


async def test_one_that_somebody_else_has_started_again(supervise: Start) -> None:
    up = await supervise("one", "two")
    await up.says("ANNOUNCED")
    up.child("one").kill()
    with socket.socket() as elsewhere:
        elsewhere.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        await up.says("starting it again")
        elsewhere.bind(("127.0.0.1", up.ports["one"]))
        elsewhere.listen()
        await up.says("is now used by a process that was started elsewhere")
    await up.says("one serves again")


async def test_what_is_needed_first_serves_before_the_others_start(supervise: Start) -> None:
    up = await supervise("one", "first")
    await up.says("ANNOUNCED")
    assert up.output.index("first | serving") < up.output.index("one   | serving")


async def test_one_that_fails_at_the_start_ends_all_and_says_why(supervise: Start) -> None:
    up = await supervise("one", "bad")
    assert await up.ends() == 1
    assert "bad ended with exit code 3. Its last lines:" in up.output
    assert up.output.rstrip().endswith("this is why")
    assert "ANNOUNCED" not in up.output


async def test_one_that_never_serves(supervise: Start) -> None:
    up = await supervise("mute")
    assert await up.ends() == 1
    assert f"mute did not serve at 127.0.0.1:{up.ports['mute']} within 1 s" in up.output


async def test_one_that_does_not_stop_is_killed(supervise: Start) -> None:
    up = await supervise("one", "deaf")
    await up.says("ANNOUNCED")
    children = list(up.children().values())
    up.process.send_signal(signal.SIGTERM)
    assert await up.ends() == 0
    assert "deaf did not stop within 1 s; killing it" in up.output
    await gone(children)


async def test_a_second_signal_kills(supervise: Start) -> None:
    up = await supervise("deaf")
    await up.says("ANNOUNCED")
    up.process.send_signal(signal.SIGINT)
    await up.says("once more kills")
    up.process.send_signal(signal.SIGINT)
    assert await up.ends() == 0
    assert "killing what is left" in up.output
    assert "did not stop within" not in up.output


async def test_what_a_process_started_goes_with_it(supervise: Start) -> None:
    up = await supervise("parent")
    await up.says("ANNOUNCED")
    below = up.child("parent").children()
    assert [child.name() for child in below] == ["sleep"]
    up.child("parent").kill()
    await up.says("parent was ended by SIGKILL")
    await gone(below)


async def test_a_line_of_any_length_comes_through(supervise: Start) -> None:
    up = await supervise("long")
    await up.says("ANNOUNCED")
    assert "x" * 300_000 in up.output


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's promise that this rests on is Linux's")
async def test_no_process_outlives_a_supervisor_that_was_killed(supervise: Start) -> None:
    up = await supervise("one", "two")
    await up.says("ANNOUNCED")
    children = list(up.children().values())
    os.kill(up.process.pid, signal.SIGKILL)
    await gone(children)
    await up.process.wait()


async def test_a_terminal_that_is_gone_does_not_keep_it_from_stopping(supervise: Start) -> None:
    up = await supervise("one")
    await up.says("ANNOUNCED")
    children = list(up.children().values())
    up.process._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]  # nobody reads any more
    up.process.send_signal(signal.SIGHUP)
    async with asyncio.timeout(HANG_GUARD):
        assert await up.process.wait() == 0
    await gone(children)
