"""Messages as DynamoDB's items, and back."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from chat_grpc.domain import FinishReason, Message, Part, Passage, Status, Usage
from chat_grpc.storage import Cursor

Item = dict[str, Any]
"""An item in DynamoDB's own form: each value is {type: value}."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(tuple[Passage, ...]).decode

MAX_ITEM_BYTES = 400_000
"""DynamoDB takes 400 KiB; what is left is for names and numbers."""

TEXTS = ("id", "user_id", "session_id", "request_id", "message", "request_key", "request_digest")
SETTLED_TEXTS = ("answer", "error_reason", "model")
SETTLED = (*SETTLED_TEXTS, "status", "finish_reason", "usage", "cached", "degraded", "passages", "completed_at")
"""The attributes that ``settle`` writes; those it has nothing for are taken away."""


def session_key(session_id: str) -> str:
    """Return the pk of a session's messages."""
    return f"S#{session_id}"


def user_key(user_id: str) -> str:
    """Return the pk of what points to a user's messages."""
    return f"U#{user_id}"


def request_key(key: str) -> Item:
    """Return the whole key of what points to a request's message."""
    return {"pk": {"S": f"R#{key}"}, "sk": {"S": "R"}}


def secret_key(name: str) -> Item:
    """Return the whole key of a secret."""
    return {"pk": {"S": f"C#{name}"}, "sk": {"S": "C"}}


def sort_key(place: Message | Cursor) -> str:
    """Return the sk of a message: texts that sort by time, then by id."""
    return f"{time_text(place.created_at)}#{place.id}"


def message_key(message: Message) -> Item:
    """Return the whole key of a message."""
    return {"pk": {"S": session_key(message.session_id)}, "sk": {"S": sort_key(message)}}


def message_item(message: Message) -> Item:
    """Return the item of a message; what is empty is left out."""
    item = message_key(message)
    item |= {name: {"S": text} for name in TEXTS if (text := getattr(message, name))}
    item["created_at"] = {"S": time_text(message.created_at)}
    return item | settled(message)


def settled(message: Message) -> Item:
    """Return the attributes of SETTLED that the message has something for."""
    item: Item = {name: {"S": text} for name in SETTLED_TEXTS if (text := getattr(message, name))}
    item["status"] = {"S": str(message.status)}
    if message.finish_reason is not None:
        item["finish_reason"] = {"S": str(message.finish_reason)}
    if message.usage is not None:
        item["usage"] = {"M": _usage_item(message.usage)}
    if message.cached:
        item["cached"] = {"BOOL": True}
    if message.degraded:
        item["degraded"] = {"L": [{"S": str(part)} for part in message.degraded]}
    if message.passages:
        item["passages"] = {"S": _encode(message.passages).decode()}
    if message.completed_at is not None:
        item["completed_at"] = {"S": time_text(message.completed_at)}
    return item


def message_of(item: Mapping[str, Any]) -> Message:
    """Return the message of an item."""

    def text(name: str) -> str:
        return str(item[name]["S"]) if name in item else ""

    return Message(
        id=text("id"),
        user_id=text("user_id"),
        session_id=text("session_id"),
        request_id=text("request_id"),
        message=text("message"),
        created_at=_moment(text("created_at")),
        answer=text("answer"),
        status=Status(text("status")),
        finish_reason=FinishReason(text("finish_reason")) if "finish_reason" in item else None,
        error_reason=text("error_reason"),
        model=text("model"),
        usage=_usage_of(item["usage"]["M"]) if "usage" in item else None,
        completed_at=_moment(text("completed_at")) if "completed_at" in item else None,
        cached="cached" in item,
        degraded=tuple(Part(part["S"]) for part in item["degraded"]["L"]) if "degraded" in item else (),
        passages=_decode(text("passages")) if "passages" in item else (),
        request_key=text("request_key"),
        request_digest=text("request_digest"),
    )


def size_of(message: Message) -> int:
    """Return about how many bytes the message's item takes: at least as many as DynamoDB counts."""
    texts = sum(len(getattr(message, name).encode()) for name in (*TEXTS, *SETTLED_TEXTS))
    return texts + len(_encode(message.passages)) + 1_000


def _usage_item(usage: Usage) -> Item:
    item = {
        name: {"N": str(getattr(usage, name))} for name in ("prompt_tokens", "completion_tokens", "total_tokens")
    } | {"estimated": {"BOOL": usage.estimated}}
    if usage.cost_usd is not None:
        item["cost_usd"] = {"N": repr(usage.cost_usd)}
    return item


def _usage_of(item: Mapping[str, Any]) -> Usage:
    return Usage(
        int(item["prompt_tokens"]["N"]),
        int(item["completion_tokens"]["N"]),
        int(item["total_tokens"]["N"]),
        float(item["cost_usd"]["N"]) if "cost_usd" in item else None,
        estimated=item["estimated"]["BOOL"],
    )


def time_text(moment: datetime) -> str:
    """Return a moment as text of a fixed width, so that texts sort as moments do."""
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)
