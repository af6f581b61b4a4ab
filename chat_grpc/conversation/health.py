"""The state of each part, and what it means for the whole."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from enum import StrEnum

from chat_grpc import __version__
from chat_grpc.conversation.sessions import Sessions
from chat_grpc.domain import Part
from chat_grpc.errors import ChatError
from chat_grpc.llm import Models
from chat_grpc.retrieval import MemoryState, Retriever
from chat_grpc.shared import SharedState
from chat_grpc.storage import Storage

CHECK_SECONDS = 2.0


class Health(StrEnum):
    """How well the service, or a part of it, is."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"


@dataclass(frozen=True, slots=True)
class PartHealth:
    """How well a part is; ``detail`` says what is wrong."""

    part: Part
    status: Health
    detail: str = ""


@dataclass(frozen=True, slots=True)
class HealthReport:
    """How well the service is, and each part of it."""

    status: Health
    parts: tuple[PartHealth, ...]
    frame_count: int
    active_sessions: int
    version: str
    model: str

    @property
    def retrieval_up(self) -> bool:
        """Tell whether the memory answers."""
        return any(part.part is Part.RETRIEVAL and part.status is Health.HEALTHY for part in self.parts)


class HealthReporter:
    """Asks every part how it is."""

    def __init__(
        self,
        *,
        retriever: Retriever,
        models: Models,
        storage: Storage,
        sessions: Sessions,
        shared: SharedState | None = None,
    ) -> None:
        self._retriever = retriever
        self._models = models
        self._storage = storage
        self._sessions = sessions
        self._shared = shared

    @property
    def model(self) -> str:
        """The full name of the default model."""
        return self._models.full_name("")

    async def report(self) -> HealthReport:
        """Return the state of every part, within CHECK_SECONDS."""
        memory, model, storage = await asyncio.gather(
            _ask(self._retriever.state()), _ask(self._models.ping()), _ask(self._storage.ping())
        )
        frames = memory.frame_count if isinstance(memory, MemoryState) else 0
        if isinstance(memory, MemoryState) and not memory.serving:
            memory = "the memvid service is up but has no memory open"
        parts = [
            # Without passages messages are still answered, so a missing memory only degrades.
            _part(Part.RETRIEVAL, memory, Health.DEGRADED),
            _part(Part.LLM, model, Health.UNHEALTHY),
            _part(Part.STORAGE, storage, Health.UNHEALTHY),
        ]
        if self._shared is not None:  # each server goes on by itself without it
            parts.append(_part(Part.CACHE, await _ask(self._shared.ping()), Health.DEGRADED))
        worst = max((part.status for part in parts), key=list(Health).index)
        return HealthReport(
            status=worst,
            parts=tuple(parts),
            frame_count=frames,
            active_sessions=len(self._sessions),
            version=__version__,
            model=self.model,
        )

    async def can_answer(self) -> bool:
        """Tell whether messages can be taken: the database must be there to keep them."""
        return not isinstance(await _ask(self._storage.ping()), str)


async def _ask(check: Awaitable[object]) -> object:
    """Return what a check returns, or a text saying what is wrong."""
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            return await check
    except ChatError as error:
        return error.message
    except TimeoutError:
        return f"did not answer within {CHECK_SECONDS:g} s"


def _part(part: Part, outcome: object, when_missing: Health) -> PartHealth:
    if isinstance(outcome, str):
        return PartHealth(part, when_missing, outcome)
    return PartHealth(part, Health.HEALTHY)
