"""How far an export or import is, in a small file beside its own."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import msgspec


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A place to go on from.

    ``job`` says whose it is: nothing goes on with another file or database.
    ``after`` is the storage's place (export), ``offset`` the file's.
    """

    job: str
    offset: int
    after: str = ""
    messages: int = 0
    new: int = 0


def job_of(*parts: object) -> str:
    """Return a name for what is done with these; the database's URL can't be read from it."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()


class CheckpointFile:
    """The file of a checkpoint."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self, job: str) -> Checkpoint | None:
        """Return what was saved for this job; None if nothing was."""
        try:
            saved = msgspec.json.decode(self._path.read_bytes(), type=Checkpoint)
        except (FileNotFoundError, msgspec.MsgspecError):
            return None
        return saved if saved.job == job else None

    def save(self, checkpoint: Checkpoint) -> None:
        """Save it; the one before stays until this one is whole."""
        new = self._path.with_name(self._path.name + ".new")
        with new.open("wb") as file:
            file.write(msgspec.json.encode(checkpoint))
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._path)

    def remove(self) -> None:
        """Remove it: the job is done."""
        self._path.unlink(missing_ok=True)
