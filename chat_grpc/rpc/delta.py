"""ChatResponse{delta: {text}} in its wire form, for the one message that is sent by the thousand.

Making the two messages and serialising them takes several times as long as
putting their bytes together, which stay the same as long as the fields keep
their numbers; and those are frozen (buf breaking).
"""

from __future__ import annotations

from chat_grpc._gen.chat.v1 import chat_pb2

_LENGTH_DELIMITED = 2


def _tag(number: int) -> int:
    return number << 3 | _LENGTH_DELIMITED


DELTA = _tag(chat_pb2.ChatResponse.DELTA_FIELD_NUMBER)
TEXT = _tag(chat_pb2.Delta.TEXT_FIELD_NUMBER)
SHORT = 126
"""Bytes of text below which both lengths take one byte each."""
HEADS = (bytes((DELTA, 0)), *(bytes((DELTA, size + 2, TEXT, size)) for size in range(1, SHORT)))
"""What stands before a short text, by its size in bytes."""


def delta_bytes(text: str) -> bytes:
    """Return what ``ChatResponse(delta=Delta(text=text)).SerializeToString()`` returns."""
    data = text.encode()
    size = len(data)
    if size < SHORT:
        return HEADS[size] + data
    return chat_pb2.ChatResponse(delta=chat_pb2.Delta(text=text)).SerializeToString()
