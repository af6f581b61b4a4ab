"""``chat-grpc admin import``: the messages of an export, into any storage."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from chat_grpc.domain import Message
from chat_grpc.embedded.progress import Progress
from chat_grpc.settings import Settings
from chat_grpc.storage import Storage
from chat_grpc.storage.opening import open_storage
from chat_grpc.terminal.admin import lines
from chat_grpc.terminal.admin.checkpoint import Checkpoint, CheckpointFile, job_of
from chat_grpc.terminal.admin.running import CommandError, say

BATCH = 500


def run(settings: Settings, file: str, *, restart: bool) -> None:
    """Add the messages of a file; those that are there stay as they are. Go on where an earlier run stopped.

    Raises:
        CommandError: the file is no export, or of a later version.
        StorageUnavailable: the messages can't be kept.
        OSError: the file can't be read.
    """
    if file == "-":
        done = asyncio.run(_take(settings, Reader(sys.stdin.buffer, "stdin"), Checkpoint(job="", offset=0), _nothing))
    else:
        path = Path(file)
        with path.open("rb") as opened:
            done = _from_file(settings, path, opened, restart=restart)
    say(f"{done.new} messages were imported, {done.messages - done.new} were there already")


def _from_file(settings: Settings, path: Path, opened: BinaryIO, *, restart: bool) -> Checkpoint:
    facts = path.stat()
    job = job_of("import", settings.database_url, facts.st_size, facts.st_mtime_ns)
    checkpoints = CheckpointFile(path.with_name(path.name + ".progress"))
    begun = (None if restart else checkpoints.load(job)) or Checkpoint(job=job, offset=0)
    with Progress() as progress:
        advance = progress.meter("importing bytes:", facts.st_size)
        if begun.messages:
            say(f"going on after {begun.messages} messages")
        seen = 0

        def passed(now: Checkpoint) -> None:
            nonlocal seen
            checkpoints.save(now)
            advance(now.offset - seen)
            seen = now.offset

        done = asyncio.run(_take(settings, Reader(opened, str(path)), begun, passed))
    checkpoints.remove()
    return done


async def _take(
    settings: Settings, reader: Reader, begun: Checkpoint, passed: Callable[[Checkpoint], None]
) -> Checkpoint:
    """Keep what comes after a checkpoint, and report a new one after each batch; return the last."""
    reader.begin(begun)
    storage = await open_storage(settings, serving=False)
    try:
        now = begun
        while batch := reader.batch():
            now = await _keep(storage, batch, reader.offset, now)
            passed(now)
        return now
    finally:
        await storage.close()


async def _keep(storage: Storage, batch: list[Message], offset: int, now: Checkpoint) -> Checkpoint:
    new = await storage.put(batch)
    return Checkpoint(job=now.job, offset=offset, messages=now.messages + len(batch), new=now.new + new)


class Reader:
    """Reads an export in batches. ``name`` is what it is called when something is wrong with it."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file = file
        self._name = name
        self._line = 1
        self._broken = False
        self.offset = 0

    def begin(self, begun: Checkpoint) -> None:
        """Read the header, and go to where a checkpoint was.

        Raises:
            CommandError: it is no export, or of a later version.
        """
        header = self._file.readline()
        version = lines.version_of(header)
        if version is None:
            raise CommandError(f"{self._name} is no export: its first line must name the format {lines.FORMAT}")
        if version > lines.VERSION:
            raise CommandError(
                f"{self._name} has version {version}, this program knows {lines.VERSION}; use a newer chat-grpc"
            )
        self.offset = len(header)
        if begun.offset:
            self._file.seek(begun.offset)
            self.offset = begun.offset
            self._line += begun.messages

    def batch(self) -> list[Message]:
        """Return the next messages, none at the end.

        Raises:
            CommandError: the next line is no message.
        """
        messages: list[Message] = []
        while len(messages) < BATCH and not self._broken and (line := self._file.readline()):
            message = lines.decode(line)
            if message is None:
                self._broken = True  # those before it are given first
                break
            messages.append(message)
            self.offset += len(line)
        if self._broken and not messages:
            raise CommandError(
                f"line {self._line + 1} of {self._name} is no message of this format; those before it were imported"
            )
        self._line += len(messages)
        return messages


def _nothing(_: Checkpoint) -> None:
    """Stdin can't be gone back to."""
