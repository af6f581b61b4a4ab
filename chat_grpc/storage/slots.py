"""Which of the servers that share a SQLite file is alive: each holds a numbered file beside it, locked.

The system lets go of a lock when its process ends, however it ends. So nothing
has to be said every few seconds, as it has to where the servers are on several
machines, and nobody is taken for dead who is only slow.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

NOBODY = -1
"""The number that no server has."""


class Slot:
    """A number that no other living server has; the lowest one that was free."""

    def __init__(self, database: Path) -> None:
        """Take it.

        Raises:
            OSError: the file beside the database can't be made or locked.
        """
        for number in count():
            descriptor = _open(database, number)
            if _locked(descriptor):
                self.number = number
                self._descriptor = descriptor
                return
            os.close(descriptor)

    def close(self) -> None:
        """Let go of it. The file stays, for the next one."""
        os.close(self._descriptor)


@contextmanager
def held_if_free(database: Path, number: int) -> Iterator[bool]:
    """Tell whether no living server has a number; if so, none gets it within the block.

    Raises:
        OSError: the file beside the database can't be made or locked.
    """
    if number == NOBODY:
        yield True
        return
    descriptor = _open(database, number)
    try:
        yield _locked(descriptor)
    finally:
        os.close(descriptor)


def _open(database: Path, number: int) -> int:
    return os.open(f"{database}-server-{number}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _locked(descriptor: int) -> bool:
    try:
        # The lock belongs to this opening of the file, not to the process: two servers in one process are two.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
