"""What is said in place of an answer, and what may be asked instead."""

from __future__ import annotations

import time
from collections.abc import Callable

from chat_grpc.domain import SuggestedQuestion
from chat_grpc.errors import RetrievalUnavailable
from chat_grpc.retrieval import Retriever

MODEL = "guardrails/refusal"
"""Who writes a refusal: no model."""
REFUSED = (
    "This message was not passed on to a model: it looks like an attempt to change how this service works, or to "
    "learn what it keeps to itself. If that is not what you meant, please say it in other words."
)
WITHHELD = "The rest of this answer is withheld: it would tell what this service keeps to itself."
MOST = 3
"""How many questions are suggested."""
FRESH_SECONDS = 60.0


def refusal_of(questions: tuple[SuggestedQuestion, ...]) -> str:
    """Return the text of an answer to a message that was refused."""
    return REFUSED + _asking(questions)


def withheld_of(questions: tuple[SuggestedQuestion, ...]) -> str:
    """Return what ends an answer whose rest is withheld."""
    return f"\n\n{WITHHELD}" + _asking(questions)


def _asking(questions: tuple[SuggestedQuestion, ...]) -> str:
    if not questions:
        return ""
    return "\n\nYou could ask:\n\n" + "\n".join(f"- {item.question}" for item in questions)


class Suggestions:
    """The first of the memory's suggested questions; none while it can't be reached. Asked for once a minute."""

    def __init__(self, retriever: Retriever, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._retriever = retriever
        self._clock = clock
        self._questions: tuple[SuggestedQuestion, ...] = ()
        self._fresh_until = float("-inf")

    async def questions(self) -> tuple[SuggestedQuestion, ...]:
        """Return at most three questions."""
        if self._clock() >= self._fresh_until:
            # Before it is asked: a memory that does not answer holds up one refusal a minute, not all.
            self._fresh_until = self._clock() + FRESH_SECONDS
            try:
                profile = await self._retriever.profile()
            except RetrievalUnavailable:
                return self._questions
            self._questions = profile.suggested_questions[:MOST] if profile else ()
        return self._questions
