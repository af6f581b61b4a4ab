"""Finding the passages that ground an answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from chat_grpc.domain import Passage, SuggestedQuestion


@dataclass(frozen=True, slots=True)
class Profile:
    """What the memory says of itself; ``system_prompt`` is what the model is to be told, "" if it doesn't say."""

    name: str
    title: str
    suggested_questions: tuple[SuggestedQuestion, ...]
    system_prompt: str = ""


@dataclass(frozen=True, slots=True)
class MemoryState:
    """Whether the memory is open, and how many passages it holds."""

    serving: bool
    frame_count: int
    file: str


class Retriever(Protocol):
    """A memory that can be asked. Every method raises RetrievalUnavailable when it can't answer."""

    async def ask(self, question: str, *, top_k: int, filters: Mapping[str, str]) -> tuple[Passage, ...]:
        """Return at most ``top_k`` passages for a question in everyday words, best first."""

    async def profile(self) -> Profile | None:
        """Return what the memory says of itself, or None if it says nothing."""

    async def state(self) -> MemoryState:
        """Return whether the memory is open, and how much it holds."""
