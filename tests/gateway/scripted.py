"""A conversation that plays a script, and a health report that says what it is told.

They stand for the one part that these tests must decide themselves: what is
answered, when, and how it fails. tests/e2e runs the real one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import grpc

from chat_grpc._gen.chat.v1 import chat_pb2, chat_pb2_grpc
from chat_grpc.conversation import health
from chat_grpc.conversation.answering import Direct
from chat_grpc.domain import ChatRequest, Completed, Event, FinishReason, Part, Passage, Retrieved, Started, Usage
from chat_grpc.rpc.lifecycle import InFlight

SESSION = "7f8f6e54-9d7c-4a3d-9f55-0c1f4f3f6a10"
STARTED = Started("msg_1", SESSION, "req-1")
NOTHING = Retrieved((), 0)
RETRIEVED = Retrieved((Passage("Keeping messages", 0.75, "Set CHAT_DATABASE_URL.", ("storage", "setup")),), 4)
COMPLETED = Completed(
    "msg_1",
    SESSION,
    "openai/gpt-5-mini",
    datetime(2024, 1, 15, 10, 30, tzinfo=UTC),
    FinishReason.STOP,
    Usage(50, 7, 57),
)


Step = Event | Exception | asyncio.Event | tuple[str]
"""What is played; text in a tuple is handed over directly, as a model's is."""


@dataclass
class Conversation:
    """Plays a script: events are yielded, exceptions raised, and at an asyncio.Event it waits until a test sets it."""

    script: Iterable[Step] = field(default_factory=lambda: [STARTED, RETRIEVED, "They", " stay", COMPLETED])
    requests: list[ChatRequest] = field(default_factory=list)
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    async def chat(self, request: ChatRequest, direct: Direct | None = None) -> AsyncGenerator[Event, None]:
        self.requests.append(request)
        self.asked.set()
        try:
            for step in self.script:
                if isinstance(step, asyncio.Event):
                    await step.wait()
                elif isinstance(step, Exception):
                    raise step
                elif isinstance(step, tuple):
                    assert direct is not None, "only a caller that can be handed text is handed some"
                    if (taking := direct(*step)) is not None:
                        await taking
                else:
                    yield step
        finally:
            self.closed.set()


def report(status: health.Health = health.Health.DEGRADED, *, model: bool = True) -> health.HealthReport:
    """The state of a service whose memory is missing, and whose model may be."""
    return health.HealthReport(
        status=status,
        parts=(
            health.PartHealth(Part.RETRIEVAL, health.Health.DEGRADED, "the memvid service can't be reached"),
            health.PartHealth(Part.LLM, health.Health.HEALTHY if model else health.Health.UNHEALTHY),
            health.PartHealth(Part.STORAGE, health.Health.HEALTHY),
        ),
        frame_count=0,
        active_sessions=0,
        version="0.0.1",
        model="openai/gpt-5-mini",
    )


class Health:
    """Reports what a test tells it to."""

    def __init__(self) -> None:
        self.answer = report()

    async def report(self) -> health.HealthReport:
        return self.answer


class NativeChat(chat_pb2_grpc.ChatServiceServicer):
    """Plays the same script over chat.v1, as far as it is text."""

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation

    async def Chat(self, request: chat_pb2.ChatRequest, context: Any) -> AsyncIterator[chat_pb2.ChatResponse]:
        async with aclosing(self._conversation.chat(ChatRequest(message=request.message, request_id=""))) as events:
            async for event in events:
                if isinstance(event, str):
                    yield chat_pb2.ChatResponse(delta=chat_pb2.Delta(text=event))


@dataclass
class Gateway:
    """The addresses of what runs, and the script that it plays."""

    conversation: Conversation
    health: Health
    server: grpc.aio.Server
    grpc_port: int
    in_flight: InFlight
