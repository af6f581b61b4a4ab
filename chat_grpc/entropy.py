"""Random names from the system's generator, of which a good many are asked for at once.

Asking the system lets go of the interpreter's lock, and under load it takes a
while to get it back: twenty times as long as the asking itself, three times a
message.
"""

from __future__ import annotations

import os

SIZE = 16
"""Bytes of most names."""
AT_ONCE = 256
"""Names whose bytes are asked for at once."""

_digits: list[str] = []
"""The digits of names that nobody has had. Taking one off is a single step, whichever thread does it."""
# A copy of this process would go on with the same ones.
os.register_at_fork(after_in_child=_digits.clear)


def random_hex(size: int) -> str:
    """Return ``size`` random bytes as hexadecimal digits, fit to be a name that nobody can guess."""
    if size > SIZE:
        return os.urandom(size).hex()
    try:
        digits = _digits.pop()
    except IndexError:
        digits, *others = _names()
        _digits.extend(others)
    return digits if size == SIZE else digits[: 2 * size]


def _names() -> list[str]:
    digits = os.urandom(AT_ONCE * SIZE).hex()
    return [digits[place : place + 2 * SIZE] for place in range(0, len(digits), 2 * SIZE)]


def random_uuid() -> str:
    """Return a random UUID (RFC 9562, version 4) as text."""
    digits = random_hex(16)
    variant = "89ab"[int(digits[16], 16) & 3]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"
