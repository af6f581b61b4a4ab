"""The bodies of POST /api/v1/chat, made from the events of a conversation."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any

import msgspec

from chat_grpc.domain import Completed, Event, Retrieved, Started
from chat_grpc.errors import ChatError
from chat_grpc.telemetry.context import request_id
from gateway import sse

_UNEXPECTED = "something went wrong on the server; the request id finds it in the log"


async def as_events(events: AsyncIterator[Event]) -> AsyncGenerator[bytes, None]:
    """Yield retrieval, token..., stats, done, each as the bytes of one server-sent event.

    What fails before the first event is raised and nothing else, so that it can
    still become an HTTP status. What fails later becomes an error event, the
    last one of the stream, and then is raised all the same: the log, the gRPC
    status and the metrics say what happened, while Envoy ends the body cleanly.
    """
    began = time.monotonic()
    started: Started | None = None
    chunks: int | None = None
    completed: Completed | None = None
    try:
        async for event in events:
            if type(event) is str:
                yield sse.token(event)
            elif isinstance(event, Started):
                # Held back until the passages are there: retrieval is the
                # first event, and nothing has happened to tell before it.
                started = event
            elif isinstance(event, Retrieved):
                chunks = len(event.passages)
                yield sse.event(_retrieval(event, started))
            elif isinstance(event, Completed):
                completed = event
                yield sse.event(_stats(event, chunks or 0, time.monotonic() - began))
                yield sse.event({"type": "done", "finish_reason": event.finish_reason} | _suggestions(event))
        if completed is None:
            raise _cut_short()  # noqa: TRY301 (it takes the way that every other failure takes)
    except Exception as error:
        if chunks is not None:
            yield sse.event(_failure(error))
        raise


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole answer; ``chunks`` counts the passages that it was written from."""

    text: str
    chunks: int
    completed: Completed


async def whole(events: AsyncIterator[Event]) -> Whole:
    """Gather an answer.

    Raises:
        ChatError: what the conversation raised.
    """
    pieces: list[str] = []
    chunks = 0
    completed: Completed | None = None
    async for event in events:
        if type(event) is str:
            pieces.append(event)
        elif isinstance(event, Retrieved):
            chunks = len(event.passages)
        elif isinstance(event, Completed):
            completed = event
    if completed is None:
        raise _cut_short()
    return Whole("".join(pieces), chunks, completed)


async def as_object(events: AsyncIterator[Event]) -> bytes:
    """Return the whole answer as one JSON object.

    Raises:
        ChatError: what the conversation raised.
    """
    answer = await whole(events)
    completed = answer.completed
    return msgspec.json.encode(
        {
            "id": completed.message_id,
            "session_id": completed.session_id,
            "message": answer.text,
            "content": answer.text,
            "model": completed.model,
            "cached": completed.cached,
            "chunks_retrieved": answer.chunks,
            "tokens_used": completed.usage.total_tokens,
            "timestamp": completed.created_at,
            "finish_reason": completed.finish_reason,
            "degraded": completed.degraded,
            "usage": completed.usage,
        }
        | _suggestions(completed)
    )


def _retrieval(event: Retrieved, started: Started | None) -> dict[str, Any]:
    fields: dict[str, Any] = {"type": "retrieval", "chunks": len(event.passages)}
    if started is not None:
        fields |= {"id": started.message_id, "session_id": started.session_id}
    return fields | {"passages": event.passages}


def _stats(event: Completed, chunks: int, seconds: float) -> dict[str, Any]:
    return {
        "type": "stats",
        "chunks": chunks,
        "tokens_used": event.usage.total_tokens,
        "elapsed_seconds": round(seconds, 3),
        "id": event.message_id,
        "session_id": event.session_id,
        "model": event.model,
        "cached": event.cached,
        "degraded": event.degraded,
    }


def _suggestions(event: Completed) -> dict[str, Any]:
    return {"suggested_questions": event.suggested_questions} if event.suggested_questions else {}


def _failure(error: Exception) -> dict[str, Any]:
    """Say what went wrong, as far as it is part of the interface."""
    if not isinstance(error, ChatError):
        fields: dict[str, Any] = {"type": "error", "error": _UNEXPECTED, "reason": "INTERNAL"}
    else:
        fields = {"type": "error", "error": error.message, "reason": error.reason}
        if error.retry_after is not None:
            fields["retry_after"] = error.retry_after
    return fields | {"request_id": request_id()}


def _cut_short() -> RuntimeError:
    return RuntimeError("the conversation ended without Completed")
