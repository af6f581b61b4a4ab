"""The hand-made bytes of a delta are those of the message."""

from __future__ import annotations

import pytest

from chat_grpc._gen.chat.v1 import chat_pb2
from chat_grpc.rpc.delta import SHORT, delta_bytes


@pytest.mark.parametrize(
    "text", ["", "a", " token", "žluť 🐎", "x" * (SHORT - 1), "x" * SHORT, "x" * 127, "x" * 128, "x" * 20_000]
)
def test_bytes_are_those_of_the_message(text: str) -> None:
    message = chat_pb2.ChatResponse(delta=chat_pb2.Delta(text=text))
    assert delta_bytes(text) == message.SerializeToString()
    assert chat_pb2.ChatResponse.FromString(delta_bytes(text)) == message
