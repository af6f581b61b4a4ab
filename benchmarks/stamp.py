"""Words that tell when they were sent: six letters, about as long as the token of a model.

They count microseconds of CLOCK_MONOTONIC, which all processes of a machine
share, and begin anew every five minutes.
"""

from __future__ import annotations

import itertools
import string

_TRIPLES = tuple("".join(letters).encode() for letters in itertools.product(string.ascii_lowercase, repeat=3))
_NUMBERS = {triple.decode(): number for number, triple in enumerate(_TRIPLES)}
_HALF = len(_TRIPLES)
_ALL = _HALF * _HALF


def word(nanoseconds: int) -> bytes:
    """Return the word of a moment."""
    high, low = divmod(nanoseconds // 1000 % _ALL, _HALF)
    return _TRIPLES[high] + _TRIPLES[low]


def age(text: str, nanoseconds: int) -> float:
    """Return how many milliseconds before a moment a word was sent, which must be less than five minutes.

    Raises:
        KeyError: it is none.
    """
    sent = _NUMBERS[text[:3]] * _HALF + _NUMBERS[text[3:]]
    return (nanoseconds // 1000 - sent) % _ALL / 1000
