"""Decoding requests so that bytes which are not the message get a clear answer.

grpcio answers INTERNAL when a request can't be decoded. The likeliest cause by
far is a string field that is not UTF-8, and then the caller is told which one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from chat_grpc.errors import Violation

LENGTH_DELIMITED = 2


class Undecodable:
    """Stands for a request that could not be decoded; ``violations`` says why."""

    __slots__ = ("violations",)

    def __init__(self, violations: tuple[Violation, ...]) -> None:
        self.violations = violations


def tolerant(from_string: Callable[[bytes], Any]) -> Callable[[bytes], Message | Undecodable]:
    """Return a deserializer that returns Undecodable where ``from_string`` raises DecodeError."""
    owner: type[Message] = from_string.__self__  # type: ignore[attr-defined]  # generated code passes Message.FromString

    def decode(raw: bytes) -> Message | Undecodable:
        try:
            message: Message = from_string(raw)
        except DecodeError:
            name = owner.DESCRIPTOR.full_name
            broken = [
                Violation(path, "is not valid UTF-8; encode the text as UTF-8")
                for path in _broken_texts(raw, owner.DESCRIPTOR, "")
            ]
            return Undecodable(tuple(broken) or (Violation("", f"the bytes are not a {name}"),))
        return message

    return decode


def _broken_texts(raw: bytes, descriptor: Any, prefix: str) -> Iterator[str]:
    """Yield the paths of string fields in ``raw`` that are not UTF-8."""
    try:
        # A message without fields keeps every field as unknown, undecoded.
        fields: Any = UnknownFieldSet(Empty.FromString(raw))
    except DecodeError:
        return
    for item in fields:
        field = descriptor.fields_by_number.get(item.field_number)
        if field is None or item.wire_type != LENGTH_DELIMITED:
            continue
        if field.type == FieldDescriptor.TYPE_STRING:
            try:
                item.data.decode()
            except UnicodeDecodeError:
                yield prefix + field.name
        elif field.type == FieldDescriptor.TYPE_MESSAGE and field.message_type is not None:
            yield from _broken_texts(item.data, field.message_type, f"{prefix}{field.name}.")
