"""Keeping answers for requests that will be equal."""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct

from chat_grpc.domain import FinishReason, Usage


class CachedAnswer(Struct, frozen=True, gc=False):
    """A whole answer, and what it cost when it was written.

    ``guardrail`` is the id of the rule that withheld the rest of it. Such an
    answer is given to those who wait for it, and never kept.
    """

    text: str
    model: str
    finish_reason: FinishReason
    usage: Usage
    guardrail: str = ""


class Cache(Protocol):
    """Answers by key. It never fails: what can't be read is not there, what can't be kept is not kept."""

    async def get(self, key: str) -> CachedAnswer | None:
        """Return the answer kept under a key, if it is not too old."""

    async def put(self, key: str, answer: CachedAnswer) -> None:
        """Keep an answer."""

    async def close(self) -> None:
        """Let go of connections."""
