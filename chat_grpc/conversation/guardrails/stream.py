"""Looking at an answer while it is passed on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from chat_grpc.conversation.guardrails import OutputRule, Withheld
from chat_grpc.conversation.guardrails.squeezed import DROPPED, LOWER, squeeze

LONG = 12
SHORT = 4
"""How many squeezed bytes at the end of an answer a rule's ``long`` and ``short`` are compared with."""
PIECE = 12
"""Squeezed bytes of one piece of text from which on it is looked at closely: something may begin and end in it."""
WORD = 8
"""ASCII characters without a space from which on a word is looked at closely: keys are long words."""
CONTEXT = 96
"""Characters of what was passed on that are looked at again with what follows."""


class AnswerGuard:
    """Looks at one answer.

    The usual piece of text is passed on at once: only when the answer's end is a
    part of something forbidden, or a long word, is it looked at closely, and
    only what may become forbidden is held back until that is decided.

    Args:
        rules: what to look for.
        short: all that the rules' ``short`` hold.
        long: all that the rules' ``long`` hold.
        question: the message that is answered.
    """

    __slots__ = ("_held", "_long", "_question", "_recent", "_rules", "_short", "_tail", "_word")

    def __init__(
        self, rules: Sequence[OutputRule], short: frozenset[bytes], long: frozenset[bytes], question: str
    ) -> None:
        self._rules = rules
        self._short = short
        self._long = long
        self._question = question
        self._tail = b""
        self._word = 0
        self._held = ""
        self._recent: list[str] = []

    def look(self, piece: str) -> str:
        """Take the next piece of the answer, and return the text that can be passed on now; often it is the piece.

        Raises:
            Withheld: the answer must end here.
        """
        if piece.isascii():
            squeezed = piece.encode().translate(LOWER, DROPPED)
            self._word = word = 0 if " " in piece else self._word + len(piece)
        else:
            squeezed = squeeze(piece)
            self._word = word = 0
        self._tail = tail = (self._tail + squeezed)[-LONG:]
        if (
            word < WORD
            and len(squeezed) < PIECE
            and tail[-SHORT:] not in self._short
            and tail not in self._long
            and not self._held
        ):
            self._recent.append(piece)
            return piece
        return self._look_closely(piece)

    def end(self) -> str:
        """Return what is still held back: nothing followed that would make it forbidden."""
        held, self._held = self._held, ""
        return held

    def _look_closely(self, piece: str) -> str:
        held = self._held + piece
        passed = "".join(self._recent)[-CONTEXT:]
        text = passed + held
        begun, forbidden_by, squeezed = len(text), "", squeeze(text)
        for rule in self._rules:
            found = rule.look(text, squeezed, self._question)
            if found is not None:
                begun = min(begun, found.start)
                if found.certain:
                    forbidden_by = forbidden_by or rule.id
        cut = max(begun - len(passed), 0)
        self._held = held[cut:]
        self._recent = [(passed + held[:cut])[-CONTEXT:]]
        self._word = 0
        if forbidden_by:
            raise Withheld(forbidden_by, held[:cut])
        return held[:cut]


def union(sets: Iterable[frozenset[bytes]]) -> frozenset[bytes]:
    """Return all that is in one of the sets."""
    return frozenset().union(*sets)
