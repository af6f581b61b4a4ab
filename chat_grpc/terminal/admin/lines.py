"""The form of an export: JSON Lines, a header and then one message a line.

The header is ``{"format": "chat-grpc.messages", "version": 1}``. A message's
fields are those of ``domain.Message`` by their names; times are RFC 3339. A
field that is added later has a default, so that older files can be read; a
change that older programs would misread raises the version.
"""

from __future__ import annotations

import re

import msgspec

from chat_grpc.domain import Message

FORMAT = "chat-grpc.messages"
VERSION = 1

ID = re.compile(r"msg_[0-9a-f]{32}")


class Header(msgspec.Struct):
    """The first line."""

    format: str
    version: int


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Message).decode
_decode_header = msgspec.json.Decoder(Header).decode


def header() -> bytes:
    """Return the first line."""
    return _encode(Header(FORMAT, VERSION)) + b"\n"


def encode(messages: list[Message]) -> bytes:
    """Return messages as lines."""
    return b"".join(_encode(message) + b"\n" for message in messages)


def version_of(line: bytes) -> int | None:
    """Return the version that a header names; None if it is no header of this format."""
    try:
        read = _decode_header(line)
    except msgspec.MsgspecError:
        return None
    return read.version if read.format == FORMAT else None


def decode(line: bytes) -> Message | None:
    """Return the message of a line, or None if it is none."""
    try:
        message = _decode(line)
    except msgspec.MsgspecError:
        return None
    times = (message.created_at, message.completed_at)
    if not ID.fullmatch(message.id) or any(time is not None and time.tzinfo is None for time in times):
        return None
    return message
