"""What is learnt of an answer is the same however its bytes are cut, the usual chunks' short way or not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from chat_grpc.domain import FinishReason, Usage
from chat_grpc.llm import Ending
from chat_grpc.llm.wire import EMPTY, ERROR, PROTOCOL, WireAnswer


def said(content: Any = None, *, finish: str | None = None, **more: Any) -> bytes:
    """A chunk as providers send it; ``more`` goes beside its choices, ``delta_*`` into its delta."""
    delta = {name.removeprefix("delta_"): more.pop(name) for name in tuple(more) if name.startswith("delta_")}
    choice = {"index": 0, "delta": {"content": content, **delta}, "finish_reason": finish, "logprobs": None}
    return event({"id": "1", "choices": [choice], **more})


def event(data: Any) -> bytes:
    return f"data: {json.dumps(data)}\n\n".encode()


USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
DONE = b"data: [DONE]\n\n"
END = (said(finish="stop"), event({"choices": [], "usage": USAGE}), DONE)
STOPPED = Ending(FinishReason.STOP, Usage(3, 2, 5, None))
BARE = Ending(FinishReason.STOP, None)

STREAMS: dict[str, tuple[tuple[bytes, ...], str, object]] = {
    "usual": ((said("", delta_role="assistant"), said("Hel"), said("lo"), *END), "Hello", STOPPED),
    "nulls": ((said("Hello", usage=None, error=None), *END), "Hello", STOPPED),
    "usage with each": ((said("Hel", usage={}), said("lo", usage=USAGE), said(finish="stop"), DONE), "Hello", STOPPED),
    "finish with text": ((said("Hello", finish="length"), DONE), "Hello", Ending(FinishReason.LENGTH, None)),
    "thoughts": ((said(delta_reasoning="Hm"), said("", delta_reasoning_content="Hm"), said("Hi"), *END), "Hi", STOPPED),
    "no choice": ((event({"choices": []}), event({}), said("Hi"), *END), "Hi", STOPPED),
    "two choices": (
        (event({"choices": [{"delta": {"content": "Hi"}}, {"delta": {"content": "Ho"}}]}), said(finish="stop"), DONE),
        "Hi",
        BARE,
    ),
    "error": ((said("Hel"), event({"error": {"message": "no"}})), "Hel", ERROR),
    "error with text": ((said("Hel", error={"code": 1}),), "Hel", ERROR),
    "no text": (END, "", EMPTY),
    "no JSON": ((said("Hel"), b"data: <html>\n\n"), "Hel", PROTOCOL),
    "of other types": ((said("Hel"), said(7)), "Hel", PROTOCOL),
    "a line end within": ((said("Hel"), said("lo").replace(b", ", b",\r", 1)), "Hel", PROTOCOL),
    "a comment": ((said("Hel"), b": still here\n\n", said("lo"), *END), "Hello", STOPPED),
}


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("cut", ["events", "whole", "bytes"])
def test_it_is_the_same_however_it_is_cut(name: str, cut: str) -> None:
    chunks, text, ending = STREAMS[name]
    whole = b"".join(chunks)
    pieces = {"events": chunks, "whole": (whole,), "bytes": tuple(bytes((byte,)) for byte in whole)}[cut]
    answer, told = WireAnswer(), ""
    for piece in pieces:
        assert not answer.over
        told += answer.feed(piece)
    assert told == text
    assert answer.over
    assert answer.done == (answer.failure is None)
    assert (answer.failure or answer.ending()) == ending


@pytest.mark.parametrize("thought", [said(delta_reasoning="Hm"), said("", delta_reasoning_content="Hm")])
def test_thoughts_count_as_a_sign_of_life_only_while_they_come(thought: bytes) -> None:
    answer = WireAnswer()
    assert (answer.feed(thought), answer.thinking) == ("", True)
    assert (answer.feed(b": a comment\n\n"), answer.thinking) == ("", False)
    assert answer.feed(thought) == ""
    assert answer.feed(said("Hi")) == "Hi"
    assert (answer.feed(b": a comment\n\n"), answer.thinking) == ("", False)
