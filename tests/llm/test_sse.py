"""The event stream decoder, whatever the chunks."""

from __future__ import annotations

import pytest

from chat_grpc.llm.sse import MAX_LINE, LineTooLong, SSEDecoder

STREAM = (
    b": OPENROUTER PROCESSING\n\n"
    b'data: {"a": "\xc3\xa9"}\n\n'
    b"event: message\nid: 7\ndata:no space\n\n"
    b"data: two\ndata: lines\n\n"
    b"data: crlf\r\n\r\n"
    b"data: cr\r\r"
    b"data:  keeps the second space\n\n"
    b"\n\n"
    b"data: [DONE]\n\n"
    b"data: never ended"
)
EVENTS = [
    b'{"a": "\xc3\xa9"}',
    b"no space",
    b"two\nlines",
    b"crlf",
    b"cr",
    b" keeps the second space",
    b"[DONE]",
]


def test_whole() -> None:
    assert SSEDecoder().feed(STREAM) == EVENTS


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 64])
def test_chunks_of_one_size(size: int) -> None:
    decoder = SSEDecoder()
    events = [event for start in range(0, len(STREAM), size) for event in decoder.feed(STREAM[start : start + size])]
    assert events == EVENTS


def test_split_at_every_byte() -> None:
    for cut in range(len(STREAM) + 1):
        decoder = SSEDecoder()
        assert decoder.feed(STREAM[:cut]) + decoder.feed(STREAM[cut:]) == EVENTS, cut


@pytest.mark.parametrize(
    "chunk",
    [
        b"data: one\n\n",
        b"data: one\n\ndata: two\n\ndata: [DONE]\n\n",
        b"data: one\n\ndata:two\n\n",
        b"data: one\n\n: a comment\n\ndata: two\n\n",
        b"data: one\ndata: line more\n\ndata: two\n\n",
        b"data: one\r\n\r\ndata: two\n\n",
        b"data: one\n\n\n\ndata: two\n\n",
        b"data: \n\ndata: data: \n\n",
        b"data: one\n\nevent: x\ndata: two\n\n",
    ],
)
@pytest.mark.parametrize("before", [b"", b"data: nearly", b"data: half\n", b": a comment\n"])
def test_whole_events_are_what_they_are_byte_by_byte(before: bytes, chunk: bytes) -> None:
    bytewise, whole = SSEDecoder(), SSEDecoder()
    expected = [event for byte in before + chunk for event in bytewise.feed(bytes((byte,)))]
    assert whole.feed(before) + whole.feed(chunk) == expected
    assert whole.between == bytewise.between is True


def test_event_is_given_out_with_its_empty_line_and_not_before() -> None:
    decoder = SSEDecoder()
    assert decoder.feed(b"data: x\n") == []
    assert decoder.feed(b"\n") == [b"x"]


def test_endless_line_is_no_event_stream() -> None:
    decoder = SSEDecoder()
    half = b"x" * (MAX_LINE // 2)
    assert decoder.feed(half) == decoder.feed(half) == []
    with pytest.raises(LineTooLong):
        decoder.feed(b"x")
