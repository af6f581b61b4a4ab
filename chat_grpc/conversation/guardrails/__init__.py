"""Guardrails: small checks of what goes to a model and of what comes from it, each with an id of its own.

An input rule reads a message before anything is done about it. An output rule
reads an answer while it is written: it names what must not appear, and the
stream holds back only what may become that. ``table.py`` lists all rules,
``guard.py`` puts the ones that are switched on together.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # settings read the table of ids, and need not compile any pattern
    from chat_grpc.conversation.guardrails.text import Readings


class Side(StrEnum):
    """Which way a text that a rule looks at is going."""

    INPUT = "input"
    OUTPUT = "output"


class InputRule(Protocol):
    """A check of a message."""

    id: str
    """What settings, metrics and the history call it."""

    def refuses(self, message: Readings) -> bool:
        """Tell whether the message must not be answered. It takes time in proportion to the message's length."""


@dataclass(frozen=True, slots=True)
class Found:
    """A place in a text where something forbidden is, or may be about to be.

    Attributes:
        start: where it begins, in characters of the text.
        certain: whether it is forbidden; else it is to be held back until more is known.
    """

    start: int
    certain: bool


class OutputRule(Protocol):
    """A check of an answer, for all answers."""

    id: str
    """What settings, metrics and the history call it."""
    short: frozenset[bytes]
    """The last four squeezed bytes of an answer at which it must be asked, however small the last piece was."""
    long: frozenset[bytes]
    """The last twelve."""

    def look(self, text: str, squeezed: bytes, question: str, /) -> Found | None:
        """Return the first forbidden place of a text, else the first one that may become forbidden by what follows.

        Args:
            text: the latest part of an answer.
            squeezed: its letters and digits (squeezed.py).
            question: the message that it answers; who wrote it may be told again what stands in it.
        """


class Withheld(Exception):
    """The rest of an answer is not passed on.

    Attributes:
        rule: the id of the rule that forbids it.
        before: the text before it that was held back, and may be passed on.
    """

    def __init__(self, rule: str, before: str) -> None:
        super().__init__(rule)
        self.rule = rule
        self.before = before
