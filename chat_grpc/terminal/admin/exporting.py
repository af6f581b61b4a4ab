"""``chat-grpc admin export``: all messages of any storage, as JSON Lines."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import BinaryIO

from chat_grpc.embedded.progress import Progress
from chat_grpc.settings import Settings
from chat_grpc.storage import Storage
from chat_grpc.storage.opening import open_storage
from chat_grpc.terminal.admin import lines
from chat_grpc.terminal.admin.checkpoint import Checkpoint, CheckpointFile, job_of
from chat_grpc.terminal.admin.running import CommandError, say, sync_folder

BATCH = 500


def run(settings: Settings, file: str, *, force: bool, restart: bool) -> None:
    """Write all messages to a file, which appears once it is whole; go on where an earlier run stopped.

    Raises:
        CommandError: the file is there.
        StorageUnavailable: the messages can't be read.
        OSError: the file can't be written.
    """
    if file == "-":
        asyncio.run(_to_stdout(settings))
        return
    target = Path(file)
    if target.exists() and not force:
        raise CommandError(f"{target} is there already; --force overwrites it")
    count = asyncio.run(_to_file(settings, target, restart=restart))
    say(f"{target}: {count} messages")


async def _to_stdout(settings: Settings) -> None:
    storage = await open_storage(settings, serving=False, create=False)
    try:
        sys.stdout.buffer.write(lines.header())
        after, more = "", True
        while more:
            batch = await storage.scan(after, limit=BATCH)
            sys.stdout.buffer.write(lines.encode(batch.messages))
            after = batch.next
            more = bool(after)
        sys.stdout.buffer.flush()
    finally:
        await storage.close()


async def _to_file(settings: Settings, target: Path, *, restart: bool) -> int:
    part = target.with_name(target.name + ".part")
    checkpoints = CheckpointFile(target.with_name(target.name + ".progress"))
    job = job_of("export", settings.database_url)
    begun = None if restart else checkpoints.load(job)
    if begun is not None and (not part.exists() or part.stat().st_size < begun.offset):
        begun = None
    storage = await open_storage(settings, serving=False, create=False)
    try:
        # What was said is nobody's business but the owner's.
        with open(os.open(part, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as file:  # noqa: ASYNC230, PTH123 (a command has nothing else to do meanwhile; its mode is given at its making)
            count = await _write(storage, file, checkpoints, begun or Checkpoint(job=job, offset=0))
    finally:
        await storage.close()
    part.replace(target)
    sync_folder(target.parent)
    checkpoints.remove()
    return count


async def _write(storage: Storage, file: BinaryIO, checkpoints: CheckpointFile, begun: Checkpoint) -> int:
    """Write what comes after a checkpoint, with a new one after each batch; return how many messages there are now."""
    file.truncate(begun.offset)  # what came after the checkpoint may be half a line
    file.seek(begun.offset)
    if not begun.offset:
        file.write(lines.header())
    with Progress() as progress:
        advance = progress.meter("exporting messages:", max(await storage.count(), begun.messages))
        if begun.messages:
            say(f"going on after {begun.messages} messages")
            advance(begun.messages)
        now, more = begun, True
        while more:
            batch = await storage.scan(now.after, limit=BATCH)
            file.write(lines.encode(batch.messages))
            file.flush()
            os.fsync(file.fileno())
            now = Checkpoint(
                job=begun.job, offset=file.tell(), after=batch.next, messages=now.messages + len(batch.messages)
            )
            more = bool(batch.next)
            if more:
                checkpoints.save(now)
            advance(len(batch.messages))
    return now.messages
