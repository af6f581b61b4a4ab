"""The body of GET /history/{user_id}, made from the messages of a history."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from msgspec.json import encode

from chat_grpc.domain import Message, Usage

NOTHING = Usage(0, 0, 0)
"""What an answer cost that no model was asked for: clients rely on usage being there."""


def as_array(messages: Iterable[Message]) -> bytes:
    """Return the messages as one JSON array of what gateway.v1.HistoryMessage describes."""
    return encode([_fields(message) for message in messages])


def _fields(message: Message) -> dict[str, Any]:
    return {
        "id": message.id,
        "user_id": message.user_id,
        "content": message.message,
        "response": message.answer,
        "model": message.model,
        "usage": message.usage or NOTHING,
        "timestamp": message.created_at,
        "session_id": message.session_id,
        "request_id": message.request_id,
        "status": message.status,
        "error_reason": message.error_reason,
        "cached": message.cached,
    }
