"""The whole server in this event loop, on a real port, for tests that look at it from a real channel."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status

from chat_grpc import app
from chat_grpc._gen.chat.v1 import chat_pb2, chat_pb2_grpc, health_pb2_grpc, history_pb2, history_pb2_grpc
from chat_grpc.rpc.lifecycle import InFlight
from chat_grpc.settings import Settings, load


@dataclass
class Service:
    """A running server, and stubs for it."""

    address: str
    settings: Settings
    parts: app.Parts
    channel: grpc.aio.Channel
    chat: Any
    history: Any
    health: Any

    async def ask(self, message: str = "How?", **fields: Any) -> list[chat_pb2.ChatResponse]:
        """Send a message and return all events."""
        return [event async for event in self.chat.Chat(chat_pb2.ChatRequest(message=message, **fields))]

    async def fail(self, message: str = "How?", **fields: Any) -> Failure:
        """Send a message that must fail, and return how it did."""
        return await failure_of(self.chat.Chat(chat_pb2.ChatRequest(message=message, **fields)))

    async def messages(self, **scope: Any) -> list[history_pb2.Message]:
        """Return the history of a user or session, newest first."""
        page = await self.history.ListMessages(history_pb2.ListMessagesRequest(page_size=100, **scope))
        return list(page.messages)


@dataclass
class Failure:
    """How a call failed: its status with the details, and the events that came before."""

    code: grpc.StatusCode
    message: str
    events: list[chat_pb2.ChatResponse]
    details: dict[str, Any]
    trailers: dict[str, Any]

    @property
    def reason(self) -> str:
        """ErrorInfo.reason."""
        return str(self.details["ErrorInfo"].reason)

    @property
    def fields(self) -> list[str]:
        """The fields that BadRequest names."""
        return [violation.field for violation in self.details["BadRequest"].field_violations]


async def failure_of(call: Any) -> Failure:
    """Read a call to its end, which must be an error, and return it."""
    events = []
    try:
        if hasattr(call, "__aiter__"):
            async for event in call:
                events.append(event)  # noqa: PERF401 (what came before an error must be kept)
        else:
            await call
    except grpc.aio.AioRpcError as error:
        trailers = dict(error.trailing_metadata() or ())
        details = {}
        if raw := trailers.get("grpc-status-details-bin"):
            for packed in Status.FromString(raw).details:
                name = packed.type_url.rpartition(".")[2]
                details[name] = getattr(error_details_pb2, name)()
                packed.Unpack(details[name])
        return Failure(error.code(), error.details() or "", events, details, trailers)
    raise AssertionError(f"the call succeeded with {events}")


def text_of(events: list[chat_pb2.ChatResponse]) -> str:
    """Join the text of the deltas."""
    return "".join(event.delta.text for event in events if event.HasField("delta"))


@asynccontextmanager
async def service(folder: Path, **environ: str) -> AsyncIterator[Service]:
    """Run the server with its database in ``folder`` and further settings by their variables' names."""
    settings = load({"CHAT_DATABASE_URL": f"sqlite+aiosqlite:///{folder}/chat.db", **environ})
    async with app.build(settings) as parts:
        server, _, port = app.bind(parts, "127.0.0.1:0", InFlight())
        await server.start()
        address = f"127.0.0.1:{port}"
        async with grpc.aio.insecure_channel(address) as channel:
            yield Service(
                address=address,
                settings=settings,
                parts=parts,
                channel=channel,
                chat=chat_pb2_grpc.ChatServiceStub(channel),
                history=history_pb2_grpc.HistoryServiceStub(channel),
                health=health_pb2_grpc.HealthServiceStub(channel),
            )
        await server.stop(None)
