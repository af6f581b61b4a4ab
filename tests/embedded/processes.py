"""Commands of chat-grpc as processes, started and ended by tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

HANG_GUARD = 60.0


class Process:
    """A running command. What it says on stderr is kept in ``lines``."""

    def __init__(self, popen: subprocess.Popen[str]) -> None:
        self.popen = popen
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def wait_for(self, text: str) -> None:
        """Wait for a line that holds the text."""
        with self._changed:
            found = self._changed.wait_for(lambda: self._ended or any(text in line for line in self.lines), HANG_GUARD)
        assert found, f"{text!r} never came: {self.lines}"
        assert any(text in line for line in self.lines), self.lines

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, and return the exit code."""
        self.popen.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Wait for the end, and return the exit code."""
        code = self.popen.wait(HANG_GUARD)
        self._reader.join(HANG_GUARD)
        return code

    def _read(self) -> None:
        stderr = self.popen.stderr
        assert stderr is not None
        for line in stderr:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        stderr.close()


@contextmanager
def start(*arguments: str, **settings: str) -> Iterator[Process]:
    """Start `chat-grpc ARGUMENTS` with settings; it is ended with the block, if it has not ended before."""
    popen = subprocess.Popen(
        [sys.executable, "-m", "chat_grpc", *arguments],
        env=environment(**settings),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    process = Process(popen)
    try:
        yield process
    finally:
        if popen.poll() is None:
            popen.terminate()
        process.wait()


def environment(**settings: str) -> dict[str, str]:
    """Return this process's environment without settings, but for those given."""
    return {name: value for name, value in os.environ.items() if not name.startswith("CHAT_")} | settings
