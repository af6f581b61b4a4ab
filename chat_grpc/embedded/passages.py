"""From a document's sections to passages: pieces short enough to find and to quote."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

MAX_CHARS = 1200
"""A passage's length in characters; one sentence, or one line of code, may be longer only up to this."""

SEPARATOR = " › "

_SENTENCE_END = re.compile(r"(?<=[.!?…])[\"')\]]*\s+(?=\S)")
_SPACE = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class Section:
    """What stands below one heading; ``path`` is the headings above it, the outermost first."""

    path: tuple[str, ...]
    blocks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """One file's text. ``address`` is its path as a reader would name it, such as docs/rest.md."""

    address: str
    title: str
    tags: tuple[str, ...]
    sections: tuple[Section, ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """One passage, ready to be written."""

    title: str
    text: str
    tags: tuple[str, ...]
    uri: str


def split(document: Document) -> Iterator[Piece]:
    """Yield the passages of a document, in its order.

    Each is one section, or a part of one that ends with a paragraph. A
    paragraph that is too long ends a passage at the end of a line, of a
    sentence, or of a word, the first of these that it has.
    """
    number = 0
    for section in document.sections:
        title = SEPARATOR.join((document.title, *section.path))
        for text in _pack(section.blocks, "\n\n"):
            number += 1
            yield Piece(title, text, document.tags, f"{document.address}#{number}")


def _pack(parts: tuple[str, ...] | list[str], separator: str) -> Iterator[str]:
    """Join neighbours as long as they fit; parts that don't fit alone come in pieces of their own."""
    held = ""
    for part in parts:
        for piece in [part] if len(part) <= MAX_CHARS else _cut(part):
            joined = f"{held}{separator}{piece}" if held else piece
            if len(joined) <= MAX_CHARS:
                held = joined
                continue
            yield held
            held = piece
    if held:
        yield held


def _cut(text: str) -> Iterator[str]:
    """Cut one block that is too long."""
    if "\n" in text:
        return _pack(text.split("\n"), "\n")
    sentences = _SENTENCE_END.split(text)
    if len(sentences) > 1:
        return _pack(sentences, " ")
    words = _SPACE.split(text)
    if len(words) > 1:
        return _pack(words, " ")
    return (text[start : start + MAX_CHARS] for start in range(0, len(text), MAX_CHARS))
