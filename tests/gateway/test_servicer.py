"""The servicer over a real gRPC channel: what it answers, to the byte."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from chat_grpc import errors
from chat_grpc._gen.gateway.v1 import gateway_pb2
from chat_grpc.domain import ChatRequest, Completed, Event, FinishReason, Part, Usage
from tests.gateway.scripted import COMPLETED, NOTHING, SESSION, STARTED, Gateway, Step


def request(message: str = "How?", **fields: Any) -> gateway_pb2.ChatRequest:
    return gateway_pb2.ChatRequest(message=message, **fields)


async def data_of(call: Any) -> list[bytes]:
    return [body.data async for body in call]


async def failure_of(call: Any) -> tuple[list[bytes], grpc.aio.AioRpcError]:
    """Return what came before a call failed, and how it did."""
    data = []
    try:
        async for body in call:
            data.append(body.data)  # noqa: PERF401 (a comprehension would lose what came before the error)
    except grpc.aio.AioRpcError as error:
        return data, error
    return pytest.fail(f"the call ended well after {data}")


async def test_events_are_framed_to_the_byte(gateway: Gateway, stub: Any) -> None:
    bodies = [body async for body in stub.Chat(request())]

    assert [body.content_type for body in bodies] == ["text/event-stream", "", "", "", ""]
    retrieval, they, stay, stats, done = (body.data for body in bodies)
    assert retrieval == (
        b'data: {"type":"retrieval","chunks":1,"id":"msg_1","session_id":"7f8f6e54-9d7c-4a3d-9f55-0c1f4f3f6a10",'
        b'"passages":[{"title":"Keeping messages","score":0.75,"snippet":"Set CHAT_DATABASE_URL.",'
        b'"tags":["storage","setup"]}]}\n\n'
    )
    assert they == b'data: {"type":"token","content":"They"}\n\n'
    assert stay == b'data: {"type":"token","content":" stay"}\n\n'
    assert re.fullmatch(
        rb'data: \{"type":"stats","chunks":1,"tokens_used":57,"elapsed_seconds":\d+\.\d{1,3},"id":"msg_1",'
        rb'"session_id":"7f8f6e54-9d7c-4a3d-9f55-0c1f4f3f6a10","model":"openai/gpt-5-mini","cached":false,'
        rb'"degraded":\[\]\}\n\n',
        stats,
    )
    assert done == b'data: {"type":"done","finish_reason":"stop"}\n\n'
    assert gateway.conversation.closed.is_set()


async def test_text_that_would_break_the_framing_stays_one_line(gateway: Gateway, stub: Any) -> None:
    text = 'a\n\ndata: {"type":"done"}\r\n"\\ \u2028 \x00 é 漢 😀'
    gateway.conversation.script = [STARTED, NOTHING, text]
    call = stub.Chat(request())
    await call.read()
    frame = (await call.read()).data

    assert frame.endswith(b"\n\n")
    assert b"\n" not in frame[:-2]
    assert b"\r" not in frame
    assert json.loads(frame.removeprefix(b"data: ")) == {"type": "token", "content": text}


async def test_events_forbid_caching_and_buffering(stub: Any) -> None:
    call = stub.Chat(request())
    headers = dict(await call.initial_metadata())
    await data_of(call)

    assert headers["cache-control"] == "no-cache"
    assert headers["x-accel-buffering"] == "no"


async def test_stream_false_answers_one_object(gateway: Gateway, stub: Any) -> None:
    gateway.conversation.script = [
        STARTED,
        NOTHING,
        "They",
        " stay",
        Completed(
            "msg_1",
            SESSION,
            "extractive/quotes",
            datetime(2024, 1, 15, 10, 30, tzinfo=UTC),
            FinishReason.LENGTH,
            Usage(50, 7, 57, cost_usd=0.25),
            degraded=(Part.RETRIEVAL,),
        ),
    ]
    (body,) = [body async for body in stub.Chat(request(stream=False))]

    assert body.content_type == "application/json"
    assert json.loads(body.data) == {
        "id": "msg_1",
        "session_id": SESSION,
        "message": "They stay",
        "content": "They stay",
        "model": "extractive/quotes",
        "cached": False,
        "chunks_retrieved": 0,
        "tokens_used": 57,
        "timestamp": "2024-01-15T10:30:00Z",
        "finish_reason": "length",
        "degraded": ["retrieval"],
        "usage": {
            "prompt_tokens": 50,
            "completion_tokens": 7,
            "total_tokens": 57,
            "cost_usd": 0.25,
            "estimated": False,
        },
    }


async def test_the_conversation_gets_what_the_client_said(gateway: Gateway, stub: Any) -> None:
    await data_of(stub.Chat(request(session_id=SESSION, stream=True), metadata=(("x-request-id", "mine"),)))

    (said,) = gateway.conversation.requests
    assert (said.message, said.session_id, said.request_id, said.user_id) == ("How?", SESSION, "mine", "")


@pytest.mark.parametrize("message", ["", " \n\t", "x" * 2001])
async def test_a_message_of_the_wrong_length_never_reaches_the_conversation(
    gateway: Gateway, stub: Any, message: str
) -> None:
    _, error = await failure_of(stub.Chat(request(message)))

    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert [fault.field for fault in bad_request(error).field_violations] == ["message"]
    assert gateway.conversation.requests == []


async def test_the_longest_message_is_taken(gateway: Gateway, stub: Any) -> None:
    await data_of(stub.Chat(request("😀" * 2000)))

    assert len(gateway.conversation.requests[0].message) == 2000


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("before", [[], [STARTED]])
async def test_an_error_before_the_first_event_is_a_status_and_no_body(
    gateway: Gateway, stub: Any, before: list[Step], *, stream: bool
) -> None:
    gateway.conversation.script = [*before, errors.NotFound("no such session")]
    data, error = await failure_of(stub.Chat(request(stream=stream)))

    assert data == []
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert error.details() == "no such session"


async def test_an_error_after_the_first_event_is_the_last_event_and_the_status(gateway: Gateway, stub: Any) -> None:
    gateway.conversation.script = [
        STARTED,
        NOTHING,
        "They",
        errors.ModelBroke("the answer was cut short", provider="openai", stage="stream"),
    ]
    frames, error = await failure_of(stub.Chat(request(), metadata=(("x-request-id", "mine"),)))

    assert frames[1:] == [
        b'data: {"type":"token","content":"They"}\n\n',
        (
            b'data: {"type":"error","error":"the answer was cut short","reason":"MODEL_BROKE","retry_after":2.0,'
            b'"request_id":"mine"}\n\n'
        ),
    ]
    assert error.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("end", [[ValueError("sk-secret")], []], ids=["unexpected", "without Completed"])
async def test_an_unexpected_end_says_nothing_of_its_cause(gateway: Gateway, stub: Any, end: list[Step]) -> None:
    gateway.conversation.script = [STARTED, NOTHING, "They", *end]
    frames, error = await failure_of(stub.Chat(request()))

    last = json.loads(frames[-1].removeprefix(b"data: "))
    assert (last["type"], last["reason"]) == ("error", "INTERNAL")
    assert b"secret" not in b"".join(frames) + str(error.details()).encode()
    assert error.code() is grpc.StatusCode.INTERNAL


async def test_one_object_is_never_half_an_answer(gateway: Gateway, stub: Any) -> None:
    gateway.conversation.script = [STARTED, NOTHING, "They"]
    _, error = await failure_of(stub.Chat(request(stream=False)))

    assert error.code() is grpc.StatusCode.INTERNAL


@pytest.mark.parametrize("gateway", [0.02], indirect=True)
async def test_a_silence_is_filled_with_comments(gateway: Gateway, stub: Any) -> None:
    go_on = asyncio.Event()
    gateway.conversation.script = [STARTED, NOTHING, go_on, "They", asyncio.Event()]
    call = stub.Chat(request())
    async with asyncio.timeout(20):
        first, *comments = [(await call.read()).data for _ in range(4)]
        go_on.set()
        following = (await call.read()).data
        while following == b": keep-alive\n\n":
            following = (await call.read()).data

    assert first.startswith(b'data: {"type":"retrieval"')
    assert comments == [b": keep-alive\n\n"] * 3
    assert following == b'data: {"type":"token","content":"They"}\n\n'


@pytest.mark.parametrize("gateway", [0.02], indirect=True)
async def test_no_comment_comes_before_the_first_event(gateway: Gateway, stub: Any) -> None:
    go_on = asyncio.Event()
    gateway.conversation.script = [STARTED, go_on, errors.StorageUnavailable("the database is locked")]
    call = stub.Chat(request())
    await asyncio.sleep(0.2)  # ten times the silence that would call for a comment
    go_on.set()
    _, error = await failure_of(call)

    assert error.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("gateway", [0.001], indirect=True)
async def test_comments_and_events_never_collide(gateway: Gateway, stub: Any) -> None:
    """Events come at about the moment when a comment is due, again and again."""

    async def script(_: ChatRequest) -> AsyncGenerator[Event, None]:
        yield STARTED
        yield NOTHING
        for number in range(300):
            await asyncio.sleep(0.001)
            yield f"{number} "
        yield COMPLETED

    gateway.conversation.chat = script  # type: ignore[assignment]  # no list can sleep between its items
    frames = await data_of(stub.Chat(request()))

    words = [json.loads(frame[6:])["content"] for frame in frames if frame.startswith(b'data: {"type":"token"')]
    assert words == [f"{number} " for number in range(300)]
    assert b": keep-alive\n\n" in frames
    assert frames[-1] == b'data: {"type":"done","finish_reason":"stop"}\n\n'


@pytest.mark.parametrize("gateway", [0.02], indirect=True)
@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_ends_the_conversation(gateway: Gateway, stub: Any, *, stream: bool) -> None:
    gateway.conversation.script = [STARTED, NOTHING, asyncio.Event()]
    call = stub.Chat(request(stream=stream))
    async with asyncio.timeout(20):
        if stream:
            await call.read()
        await gateway.conversation.asked.wait()
        call.cancel()
        await gateway.in_flight.idle()
    assert gateway.conversation.closed.is_set()


async def test_health_has_every_field(stub: Any) -> None:
    answer = await stub.GetHealth(gateway_pb2.GetHealthRequest())

    assert (answer.status, answer.version) == ("degraded", "0.0.1")
    assert (answer.services.storage, answer.services.llm, answer.services.cache) == (True, True, True)
    assert not answer.HasField("environment")


def bad_request(error: grpc.aio.AioRpcError) -> error_details_pb2.BadRequest:
    raw = dict(error.trailing_metadata() or ())["grpc-status-details-bin"]
    for detail in status_pb2.Status.FromString(raw).details:
        if detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            faults = error_details_pb2.BadRequest()
            detail.Unpack(faults)
            return faults
    return pytest.fail("no BadRequest among the details")
