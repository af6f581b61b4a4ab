"""Answers that tell what the model was told to be."""

from __future__ import annotations

from chat_grpc.conversation.guardrails import Found
from chat_grpc.conversation.guardrails.squeezed import Forbidden, Leak, squeeze, weight

LETTERS = 48
"""So many letters of the system prompt in a row, eight words or more, are no coincidence."""
LEAST = 16
"""A system prompt with fewer letters keeps no secret."""
GRAM = 12


class PromptLeak:
    """Withholds the system prompt: from its first words on, once eight of them follow each other.

    Args:
        texts: what the model is told, each part that may be told by itself.
    """

    id = "leak.prompt"
    short: frozenset[bytes] = frozenset()

    def __init__(self, *texts: str) -> None:
        squeezed = (squeeze(text) for text in texts)
        self._leak = Leak(
            [Forbidden(text, min(LETTERS, weight(text))) for text in squeezed if len(text) >= LEAST], GRAM
        )
        self.long = self._leak.grams

    def look(self, text: str, squeezed: bytes, question: str, /) -> Found | None:
        """See OutputRule."""
        return self._leak.look(text, squeezed, question)
