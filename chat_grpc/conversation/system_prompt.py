"""What the model is told to be."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from chat_grpc.errors import RetrievalUnavailable
from chat_grpc.retrieval import Profile, Retriever
from chat_grpc.telemetry import logs

log = logs.get(__name__)

BUILT_IN = (
    "You answer questions from the passages you are given. Keep to what they say; when they do not hold the "
    "answer, say so. Answer in the language of the question, briefly and plainly."
)
FRESH_SECONDS = 60.0
RETRY_SECONDS = 5.0
MAX_TITLE = 200


class SystemPrompt:
    """The system prompt: the settings', else the memory's own, else the built-in one.

    The memory is asked once, and then again in the background when its answer
    is older than a minute. Only the first answers of all may wait for it; a
    memory that can't be reached leaves the last text in force.

    Args:
        configured: the settings' text; "" for the memory's.
        retriever: the memory.
        clock: returns seconds.
    """

    def __init__(self, configured: str, retriever: Retriever, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._configured = configured
        self._retriever = retriever
        self._clock = clock
        self._text = configured or BUILT_IN
        self._asked = False
        self._fresh_until = float("-inf")
        self._asking: asyncio.Task[None] | None = None

    async def text(self) -> str:
        """Return the system prompt; never empty."""
        if self._configured:
            return self._configured
        if self._clock() >= self._fresh_until and (self._asking is None or self._asking.done()):
            self._asking = asyncio.ensure_future(self._ask())
        if not self._asked and self._asking is not None:
            # Whoever waits may leave; the others wait on.
            await asyncio.shield(self._asking)
        return self._text

    async def close(self) -> None:
        """Stop asking."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait((self._asking,))

    async def _ask(self) -> None:
        fresh = FRESH_SECONDS
        try:
            self._text = _of(await self._retriever.profile())
        except RetrievalUnavailable as error:
            log.info("the memory's profile can't be read; the system prompt stays as it is", reason=error.reason)
            fresh = RETRY_SECONDS
        self._fresh_until = self._clock() + fresh
        self._asked = True


def _of(profile: Profile | None) -> str:
    """Return what a memory wants the model to be."""
    if profile is None:
        return BUILT_IN
    if profile.system_prompt.strip():
        return profile.system_prompt.strip()
    title = " ".join((profile.title or profile.name).split())[:MAX_TITLE]
    return f"{BUILT_IN} The passages come from: {title}." if title else BUILT_IN
