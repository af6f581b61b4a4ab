"""Running several processes as one: their output, their start, their end, and what happens when one dies.

honcho ends all processes when the first one ends. Here the others must go on
(a chat without memvid is answered, only with less), so this is a supervisor of
our own; the Procfile's parser and the printer are honcho's.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime

from honcho.colour import get_colours
from honcho.printer import Message, Printer

from chat_grpc.embedded import lifeline, probes

START_SECONDS = 60.0
"""How long a process may take until it serves for the first time."""
POLL_SECONDS = 0.1
FIRST_PAUSE = 5.0
LONGEST_PAUSE = 30.0
"""A process that died is started again after a pause that doubles from the one to the other."""
SETTLED_SECONDS = 30.0
"""After serving for so long, a process's next death is its first again."""
KEPT_LINES = 20
SUPERVISOR = "up"


@dataclass(frozen=True, kw_only=True)
class Program:
    """A process to run: where it listens, how to ask whether it serves, and how it ends.

    Those with ``needed_first`` serve before the others are started. Programs are stopped in the
    order of ``stop_order``, those of one number together; ``stop_seconds`` is how long each may take.
    """

    name: str
    command: Sequence[str]
    host: str
    port: int
    serves: probes.Probe
    environment: Mapping[str, str] = field(default_factory=dict)
    needed_first: bool = False
    stop_order: int = 1
    stop_seconds: float = 10.0


class Supervisor:
    """Runs programs until it is told to stop (SIGINT, SIGTERM, SIGHUP); told twice, it kills them."""

    def __init__(self, programs: Sequence[Program], environment: Mapping[str, str]) -> None:
        self._output = _Output([program.name for program in programs])
        self._children = [_Child(program, environment, self._output) for program in programs]
        self._stop = asyncio.Event()

    async def run(self, announce: Callable[[], None]) -> int:
        """Start all, call ``announce`` once all serve, keep them running; return the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_signal)
        work = asyncio.create_task(self._start_and_keep(announce))
        stop = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait((work, stop), return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.cancel()
            work.cancel()
            await asyncio.wait((work,))
            await self._stop_all()
        failed = None if work.cancelled() else work.result()
        if failed is None:
            return 0
        self._output.say(f"{failed.program.name} {failed.failure}. Its last lines:")
        for line in failed.last_lines:
            self._output.say(f"  {line}")
        return 1

    def _on_signal(self) -> None:
        if self._stop.is_set():
            self._output.say("killing what is left")
            for child in self._children:
                child.kill()
        else:
            self._output.say("stopping; once more kills")
            self._stop.set()

    async def _start_and_keep(self, announce: Callable[[], None]) -> _Child | None:
        """Return the first child that does not come to serve; if all do, keep them running and don't return."""
        for first in (True, False):
            children = [child for child in self._children if child.program.needed_first is first]
            if failed := await self._start(children):
                return failed
        with suppress(OSError):  # the terminal may be gone by now
            announce()
        async with asyncio.TaskGroup() as group:
            for child in self._children:
                group.create_task(child.keep_running())
        return None

    async def _start(self, children: Sequence[_Child]) -> _Child | None:
        """Start children together; return the first one that does not come to serve, or None once all do."""
        for child in children:
            await child.start()
        starts = [asyncio.create_task(child.first_start()) for child in children]
        try:
            for start in asyncio.as_completed(starts):
                if failed := await start:
                    return failed
        finally:
            for task in starts:
                task.cancel()
        return None

    async def _stop_all(self) -> None:
        for order in sorted({child.program.stop_order for child in self._children}):
            await asyncio.gather(*(child.stop() for child in self._children if child.program.stop_order == order))


class _Child:
    """One program, and the process that runs it now, if any."""

    def __init__(self, program: Program, environment: Mapping[str, str], output: _Output) -> None:
        self.program = program
        self.last_lines: deque[str] = deque(maxlen=KEPT_LINES)
        self.failure = ""
        self._fate = ""
        self._environment = {**environment, **program.environment, lifeline.VARIABLE: str(os.getpid())}
        self._output = output
        self._process: asyncio.subprocess.Process | None = None
        self._ended: asyncio.Task[int] | None = None

    async def start(self) -> None:
        """Start the process in a session of its own, so that a Ctrl-C at our terminal reaches it through us only."""
        self.last_lines.clear()
        # A pipe of our own: with asyncio's, wait() would also wait for whoever else holds its end.
        reading, writing = os.pipe()
        output = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(output), os.fdopen(reading, "rb", buffering=0)
        )
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self.program.command,
                env=self._environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=writing,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
        finally:
            os.close(writing)
        self._ended = asyncio.create_task(self._follow(self._process, output))

    async def first_start(self) -> _Child | None:
        """Return None once the process serves; this child, with its failure, if it does not come to that."""
        try:
            async with asyncio.timeout(START_SECONDS):
                served = await self._comes_to_serve()
        except TimeoutError:
            self.failure = f"did not serve at {self._address} within {START_SECONDS:g} s"
            return self
        self.failure = self._fate
        return None if served else self

    async def keep_running(self) -> None:
        """Start the process again whenever it ends, after a pause that grows with each death; never returns."""
        pause = FIRST_PAUSE
        served_since = time.monotonic()
        while True:
            await self._until_ended()
            if time.monotonic() - served_since > SETTLED_SECONDS:
                pause = FIRST_PAUSE
            self._output.say(f"{self.program.name} {self._fate}; starting it again in {pause:g} s")
            await asyncio.sleep(pause)
            await self._until_port_is_free()
            await self.start()
            if await self._comes_to_serve():
                self._output.say(f"{self.program.name} serves again")
            served_since = time.monotonic()
            pause = min(2 * pause, LONGEST_PAUSE)

    async def stop(self) -> None:
        """Have the process end, by force if it takes longer than it may."""
        if self._ended is None or self._ended.done():
            return
        self._signal(signal.SIGTERM)
        done, _ = await asyncio.wait((self._ended,), timeout=self.program.stop_seconds)
        if not done:
            self._output.say(f"{self.program.name} did not stop within {self.program.stop_seconds:g} s; killing it")
            self.kill()
            await asyncio.wait((self._ended,))

    def kill(self) -> None:
        """End the process, and whatever it started, at once."""
        if self._ended is not None and not self._ended.done():
            self._signal(signal.SIGKILL)

    @property
    def _address(self) -> str:
        return f"{self.program.host}:{self.program.port}"

    async def _comes_to_serve(self) -> bool:
        """Return True once the process serves, False if it ends before."""
        while self._ended is not None and not self._ended.done():
            if await self.program.serves() and not self._ended.done():
                return True
            await asyncio.sleep(POLL_SECONDS)
        return False

    async def _until_ended(self) -> None:
        if self._ended is not None:
            await asyncio.wait((self._ended,))

    async def _until_port_is_free(self) -> None:
        """Wait while somebody else, most likely the user, runs what we would start."""
        said = False
        while not probes.is_free(self.program.host, self.program.port):
            if not said:
                self._output.say(
                    f"{self._address} is now used by a process that was started elsewhere; "
                    f"{self.program.name} is started again when that one ends"
                )
                said = True
            await asyncio.sleep(FIRST_PAUSE)

    async def _follow(self, process: asyncio.subprocess.Process, output: asyncio.StreamReader) -> int:
        """Print what the process writes until it ends; return its exit code and keep it as its fate."""
        reader = asyncio.create_task(self._print_all(output))
        code = await process.wait()
        # Its session's leader is gone; nothing that it started may stay behind, nor hold its output open.
        self._signal(signal.SIGKILL)
        await reader
        self._fate = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return code

    async def _print_all(self, stream: asyncio.StreamReader) -> None:
        unfinished = b""
        # Not readline(), which fails on lines longer than its buffer.
        while data := await stream.read(64 * 1024):
            *lines, unfinished = (unfinished + data).split(b"\n")
            self._print(lines)
        self._print([unfinished] if unfinished else [])

    def _print(self, lines: Sequence[bytes]) -> None:
        for line in lines:
            text = line.decode(errors="replace").rstrip("\r")
            self.last_lines.append(text)
            self._output.write(self.program.name, text)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)


class _Output:
    """Every line that is shown, with the name of its process before it."""

    def __init__(self, names: Sequence[str]) -> None:
        self._printer = Printer(sys.stdout, time_format="", width=max(map(len, (*names, SUPERVISOR))))
        self._colours: dict[str, str] = dict(zip(names, get_colours(), strict=False))
        self._gone = False

    def say(self, text: str) -> None:
        """Show a line of our own."""
        self.write(SUPERVISOR, text)

    def write(self, name: str, text: str) -> None:
        """Show a line; once the terminal is gone, show nothing, and go on stopping what runs."""
        if self._gone:
            return
        try:
            self._printer.write(Message("line", text or " ", datetime.now(UTC), name, self._colours.get(name)))
        except OSError:
            self._gone = True
