"""Random names from the system's generator, of which a good many are asked for at once.

Asking the system lets go of the interpreter's lock, and under load it takes a
while to get it back: twenty times as long as the asking itself, three times a
message.
"""

from __future__ import annotations

import os
import threading

AT_ONCE = 4096
"""Bytes that are asked for at once."""


class _Pool(threading.local):
    """Bytes of one thread that nobody else has had."""

    def __init__(self) -> None:
        self.digits = ""
        self.place = 0


_pool = _Pool()
# A copy of this process would go on with the same bytes.
os.register_at_fork(after_in_child=_pool.__init__)  # type: ignore[misc]  # it empties the one of the thread that forked, which is all that a child has


def random_hex(size: int) -> str:
    """Return ``size`` random bytes as hexadecimal digits, fit to be a name that nobody can guess."""
    pool, end = _pool, _pool.place + 2 * size
    if end > len(pool.digits):
        pool.digits, end = os.urandom(max(AT_ONCE, size)).hex(), 2 * size
        pool.place = 0
    digits = pool.digits[pool.place : end]
    pool.place = end
    return digits


def random_uuid() -> str:
    """Return a random UUID (RFC 9562, version 4) as text."""
    digits = random_hex(16)
    variant = "89ab"[int(digits[16], 16) & 3]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"
