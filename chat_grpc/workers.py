"""``chat-grpc serve --workers N``: N processes that serve on one port, and the one that looks after them.

The system gives each new connection to one of them. This process takes none; it
does not even import grpc, which must not be forked: every worker is a process
of its own from the start.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from chat_grpc import ports
from chat_grpc.auth import exposure
from chat_grpc.embedded import lifeline
from chat_grpc.settings import Settings
from chat_grpc.telemetry import logs

log = logs.get(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)
START_SECONDS = 60.0
"""How long a worker may take until it serves."""
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
"""A worker that died is started again after a pause that doubles from the one to the other."""
SETTLED_SECONDS = 30.0
"""After serving for so long, a worker's next death is its first again."""
GRACE_SECONDS = 5.0
"""How much longer than its drain a worker may take to end."""
MAX_WORKERS = 128


def run(settings: Settings, count: int) -> int:
    """Serve with so many workers until a signal; return the exit code.

    0: they drained. 1: a worker did not come to serve at the start, or did not
    end well. 2: a setting is wrong. 128 + n: a second signal ended them at once.
    """
    if count > MAX_WORKERS:
        sys.stderr.write(f"chat-grpc: --workers {count} is too many; at most {MAX_WORKERS} are started\n")
        return 2
    if why := exposure.refusal(settings, setting="grpc_host"):
        sys.stderr.write(f"chat-grpc: {why}\n")
        return 2
    try:
        held = ports.hold(settings.grpc_host, settings.grpc_port)
    except OSError:
        sys.stderr.write(f"chat-grpc: {ports.cannot_listen(settings.grpc_host, settings.grpc_port)}\n")
        return 1
    with held, TemporaryDirectory(prefix="chat-grpc-") as folder:
        return asyncio.run(Workers(settings, count, Path(folder)).run())


@dataclass(frozen=True, slots=True)
class Place:
    """What a worker is told when it is started.

    Its number, from 1; the end of a pipe that it writes to once it serves; the
    folder in which the workers meet.
    """

    number: int
    ready_pipe: int
    folder: Path

    @property
    def arguments(self) -> Sequence[str]:
        """What stands for it on a command line."""
        return str(self.number), str(self.ready_pipe), str(self.folder)

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> Place:
        """Read what ``arguments`` wrote."""
        number, ready_pipe, folder = arguments
        return cls(int(number), int(ready_pipe), Path(folder))

    def say_ready(self) -> None:
        """Say that this worker serves; once."""
        os.write(self.ready_pipe, b".")
        os.close(self.ready_pipe)


class Workers:
    """All workers, from the start of the first to the end of the last."""

    def __init__(self, settings: Settings, count: int, folder: Path) -> None:
        # A worker reads its settings by itself, and is to know how many it is one of.
        environment = {**os.environ, "CHAT_WORKERS": str(count), lifeline.VARIABLE: str(os.getpid())}
        self._workers = [_Worker(number, folder, environment) for number in range(1, count + 1)]
        self._settings = settings
        self._received: list[signal.Signals] = []
        self._signalled = asyncio.Event()
        self._again = asyncio.Event()

    async def run(self) -> int:
        """Start all, keep them running until a signal, have them drain; return the exit code."""
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._on_signal, number)
        work = asyncio.ensure_future(self._start_and_keep())
        signalled = asyncio.ensure_future(self._signalled.wait())
        await asyncio.wait((work, signalled), return_when=asyncio.FIRST_COMPLETED)
        signalled.cancel()
        work.cancel()
        await asyncio.wait((work,))
        drained = await self._stop()
        if self._again.is_set():
            return 128 + self._received[-1]
        if not work.cancelled():
            return work.result()
        return 0 if drained else 1

    def _on_signal(self, number: signal.Signals) -> None:
        self._received.append(number)
        (self._again if self._signalled.is_set() else self._signalled).set()

    async def _start_and_keep(self) -> int:
        """Return the exit code of a worker that does not come to serve at the start; else keep all running."""
        first, *rest = self._workers
        # The first one makes what is missing, and tells of what is wrong: once, not once for each.
        for workers in ((first,), rest):
            served = await asyncio.gather(*(worker.start() for worker in workers))
            for worker, serves in zip(workers, served, strict=True):
                if not serves:
                    log.error("a worker did not come to serve", number=worker.number, fate=worker.fate)
                    return worker.failure
        self._announce()
        await asyncio.gather(*(worker.keep_running() for worker in self._workers))
        raise AssertionError("a worker is kept running for ever")

    def _announce(self) -> None:
        log.info(
            "workers serving",
            address=f"{self._settings.grpc_host}:{self._settings.grpc_port}",
            pids=[worker.pid for worker in self._workers],
        )
        if not self._settings.redis_url:
            log.warning(
                "limits are counted by each worker for itself; set CHAT_REDIS_URL to share them",
                workers=len(self._workers),
            )

    async def _stop(self) -> bool:
        """Have all workers end, by force if they take longer than they may; return whether they ended well."""
        living = [worker for worker in self._workers if worker.lives]
        if self._received:
            log.info("stopping workers", count=len(living), seconds=self._settings.drain_seconds)
        for worker in living:
            worker.send(signal.SIGTERM)
        ends = asyncio.gather(*(worker.ended() for worker in living))
        again = asyncio.ensure_future(self._again.wait())
        limit = self._settings.drain_seconds + GRACE_SECONDS
        await asyncio.wait((ends, again), timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        again.cancel()
        for worker in living:
            if worker.lives:
                log.warning("killing a worker that has not ended", number=worker.number, pid=worker.pid)
                worker.send(signal.SIGKILL)
        await ends
        return all(worker.ended_well for worker in living)


class _Worker:
    """One worker: the process that it is now, and the next one when that dies."""

    def __init__(self, number: int, folder: Path, environment: dict[str, str]) -> None:
        self.number = number
        self._folder = folder
        self.fate = ""
        self._environment = environment
        self._process: asyncio.subprocess.Process | None = None
        self._served = False

    @property
    def pid(self) -> int | None:
        """The process that it is now, or was last."""
        return self._process.pid if self._process is not None else None

    @property
    def lives(self) -> bool:
        """Whether there is a process."""
        return self._process is not None and self._process.returncode is None

    @property
    def failure(self) -> int:
        """The exit code to end with because this worker did not come to serve."""
        code = self._process.returncode if self._process is not None else None
        return code if code is not None and code > 0 else 1

    @property
    def ended_well(self) -> bool:
        """Whether it did what it was told when it was told to stop; before it served it could not drain."""
        code = self._process.returncode if self._process is not None else 0
        return code == 0 or (not self._served and code == -signal.SIGTERM)

    async def start(self) -> bool:
        """Start a process; return True once it serves, False if it has ended before."""
        reading, writing = os.pipe()
        self._served = False
        try:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "chat_grpc", "serve", "--worker"),
                *Place(self.number, writing, self._folder).arguments,
                env=self._environment,
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(writing,),
                # A group of its own, so that a Ctrl-C at our terminal reaches it through us only, and once.
                process_group=0,
            )
        except OSError as error:
            os.close(reading)
            self.fate = f"can't be started ({error.strerror})"
            return False
        finally:
            os.close(writing)
        try:
            async with asyncio.timeout(START_SECONDS):
                self._served = await _first_byte(reading)
        except TimeoutError:
            self.send(signal.SIGKILL)
            self.fate = f"did not serve within {START_SECONDS:g} s"
            await self.ended()
            return False
        if not self._served:
            self.fate = fate(await self.ended())
        return self._served

    async def keep_running(self) -> None:
        """Start a process again whenever it ends, after a pause that grows with each death; never returns."""
        pause = FIRST_PAUSE
        since = time.monotonic()
        while True:
            if self._served:
                self.fate = fate(await self.ended())
                if time.monotonic() - since > SETTLED_SECONDS:
                    pause = FIRST_PAUSE
            log.warning("a worker ended", number=self.number, pid=self.pid, fate=self.fate, again_in_seconds=pause)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
            if await self.start():
                log.info("a worker serves again", number=self.number, pid=self.pid)
            since = time.monotonic()

    async def ended(self) -> int:
        """Wait for the process to end; return its exit code."""
        return await self._process.wait() if self._process is not None else 0

    def send(self, number: signal.Signals) -> None:
        """Send the process a signal, if there is one."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)


def fate(code: int) -> str:
    """Say how a process ended."""
    return f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


async def _first_byte(descriptor: int) -> bool:
    """Wait until a pipe is written to, or all that could have closed it; close it, and tell which."""
    loop = asyncio.get_running_loop()
    found: asyncio.Future[None] = loop.create_future()
    loop.add_reader(descriptor, _set(found))
    try:
        await found
        return bool(os.read(descriptor, 1))
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def _set(future: asyncio.Future[None]) -> Callable[[], None]:
    def done() -> None:
        if not future.done():
            future.set_result(None)

    return done
