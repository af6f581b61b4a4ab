"""Texts that must not appear in an answer, found whatever their case, and whatever stands between their letters.

Texts are compared squeezed: letters and digits only, in lower case, as UTF-8.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from chat_grpc.conversation.guardrails import Found

LOWER = bytes(range(128)).lower() + bytes(range(128, 256))
DROPPED = bytes(code for code in range(128) if not chr(code).isalnum())
"""How ASCII text is squeezed: ``text.encode().translate(LOWER, DROPPED)``."""
_DROPPED_TOO = re.compile(r"[\W_]+")
_EAST_ASIAN = "\u2e80"
"""From here on a character says about as much as three letters."""


def squeeze(text: str) -> bytes:
    """Return the letters and digits of a text."""
    if text.isascii():
        return text.encode().translate(LOWER, DROPPED)
    return _DROPPED_TOO.sub("", unicodedata.normalize("NFKC", text).casefold()).encode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class Forbidden:
    """A squeezed text; so much of it in one piece, in letters, must not appear."""

    text: bytes
    most: int


class Leak:
    """Looks for parts of forbidden texts.

    Args:
        forbidden: the texts.
        gram: how many bytes at the end of an answer must be in one of them before it is looked at closely.
    """

    def __init__(self, forbidden: Iterable[Forbidden], gram: int) -> None:
        self._forbidden = tuple(forbidden)
        self._gram = gram
        self.grams = frozenset(
            item.text[place : place + gram] for item in self._forbidden for place in range(len(item.text) - gram + 1)
        )
        # Whatever is too long for a text of its own to be passed on holds one of the places that are looked at.
        self._stride = max(min((item.most for item in self._forbidden), default=gram) - gram + 1, 1)

    def look(self, text: str, squeezed: bytes, question: str, /) -> Found | None:
        """See OutputRule."""
        stream = squeezed
        begun = len(stream)
        for end in (*range(self._gram, len(stream), self._stride), len(stream)):
            gram = stream[max(end - self._gram, 0) : end]
            if gram not in self.grams:
                continue
            for item, start, stop in self._runs(stream, end, gram):
                run = stream[start:stop]
                if weight(run) >= item.most:
                    if run not in squeeze(question):
                        return Found(_place_of(text, start), certain=True)
                elif stop == len(stream):
                    begun = min(begun, start)
        return Found(_place_of(text, begun), certain=False) if begun < len(stream) else None

    def _runs(self, stream: bytes, end: int, gram: bytes) -> Iterator[tuple[Forbidden, int, int]]:
        """Yield what of each forbidden text stands around the bytes that end at ``end``."""
        for item in self._forbidden:
            place = item.text.find(gram)
            while place >= 0:
                start, stop, left, right = end - len(gram), end, place, place + len(gram)
                while start > 0 and left > 0 and stream[start - 1] == item.text[left - 1]:
                    start, left = start - 1, left - 1
                while stop < len(stream) and right < len(item.text) and stream[stop] == item.text[right]:
                    stop, right = stop + 1, right + 1
                yield item, start, stop
                place = item.text.find(gram, place + 1)


def weight(run: bytes) -> int:
    """Return how many letters a squeezed text has; a character of an East Asian script counts as three."""
    if run.isascii():
        return len(run)
    return sum(3 if character >= _EAST_ASIAN else 1 for character in run.decode("utf-8", "ignore"))


def _place_of(text: str, start: int) -> int:
    """Return which character of a text the squeezed byte ``start`` comes from."""
    passed = 0
    for place, character in enumerate(text):
        passed += len(squeeze(character))
        if passed > start:
            return place
    return len(text)
