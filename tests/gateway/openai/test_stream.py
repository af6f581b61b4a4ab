"""The servicer over a real gRPC channel, around a conversation that plays a script: what is written, and when."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import grpc
import pytest
from google.api.httpbody_pb2 import HttpBody

from chat_grpc import errors
from chat_grpc._gen.gateway.v1 import openai_pb2_grpc
from chat_grpc.app import BODIES
from chat_grpc.conversation.answering import Direct
from chat_grpc.domain import ChatRequest, Event
from chat_grpc.rpc.interceptor import ErrorInterceptor
from chat_grpc.rpc.lifecycle import InFlight
from chat_grpc.settings import Networks
from gateway.openai_servicer import OpenAIServicer
from tests.gateway.scripted import COMPLETED, RETRIEVED, STARTED, Conversation, Gateway, Health, Step

COMMENT = b": keep-alive\n\n"
STREAM = HttpBody(data=b'{"messages":[{"role":"user","content":"How?"}],"stream":true}')
WHOLE = HttpBody(data=b'{"messages":[{"role":"user","content":"How?"}]}')


class Models:
    """Offers one model."""

    default_model = "m"
    models = frozenset({"m", "p/m"})

    def full_name(self, model: str) -> str:
        return "p/m"


@pytest.fixture
async def gateway(request: pytest.FixtureRequest) -> AsyncIterator[Gateway]:
    """A real server. Parametrized indirectly, it says a comment after so many seconds of silence."""
    conversation, in_flight = Conversation(), InFlight()
    server = grpc.aio.server(interceptors=[ErrorInterceptor(in_flight, BODIES)])
    doubles: tuple[Any, Any] = (conversation, Models())
    servicer = OpenAIServicer(*doubles, Networks("127.0.0.0/8"), keep_alive=getattr(request, "param", 15.0))
    openai_pb2_grpc.add_OpenAIServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield Gateway(conversation, Health(), server, port, in_flight)
    await server.stop(None)


@pytest.fixture
async def stub(gateway: Gateway) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.grpc_port}") as channel:
        yield openai_pb2_grpc.OpenAIServiceStub(channel)


async def read(call: Any) -> tuple[list[HttpBody], grpc.aio.AioRpcError | None]:
    """Return what came, and how it failed if it did."""
    bodies = []
    try:
        async for body in call:
            bodies.append(body)  # noqa: PERF401 (a comprehension would lose what came before the error)
    except grpc.aio.AioRpcError as error:
        return bodies, error
    return bodies, None


def text_of(bodies: list[HttpBody]) -> str:
    """Return the text of the chunks among some events."""
    events = b"".join(body.data for body in bodies).decode().split("\n\n")
    chunks = [json.loads(event[6:]) for event in events if event.startswith("data: {")]
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks if chunk.get("choices"))


@pytest.mark.parametrize("begin", ["They", ("They",)], ids=["as an event", "directly"])
async def test_text_comes_as_events_or_directly(gateway: Gateway, stub: Any, begin: Any) -> None:
    gateway.conversation.script = [STARTED, RETRIEVED, begin, (" stay",), " where", (" they are",), COMPLETED]
    bodies, error = await read(stub.CreateChatCompletion(STREAM))

    assert error is None
    assert [body.content_type for body in bodies] == ["text/event-stream", "", "", "", ""]
    assert text_of(bodies) == "They stay where they are"
    assert bodies[0].data.count(b'"role":"assistant"') == 1
    assert not any(b'"role"' in body.data for body in bodies[1:])
    assert bodies[-1].data.endswith(b"data: [DONE]\n\n")
    assert gateway.conversation.closed.is_set()


async def test_an_answer_without_text_has_a_beginning_too(gateway: Gateway, stub: Any) -> None:
    gateway.conversation.script = [STARTED, RETRIEVED, COMPLETED]
    [body], error = await read(stub.CreateChatCompletion(STREAM))

    assert error is None
    assert body.content_type == "text/event-stream"
    assert body.data.count(b"data: ") == 3
    assert b'"role":"assistant","content":""' in body.data


@pytest.mark.parametrize("ask", [STREAM, WHOLE], ids=["stream", "object"])
@pytest.mark.parametrize("before", [[], [STARTED], [STARTED, RETRIEVED]], ids=len)
async def test_an_error_before_the_text_is_a_status_and_no_body(
    gateway: Gateway, stub: Any, before: list[Step], ask: HttpBody
) -> None:
    gateway.conversation.script = [*before, errors.StorageUnavailable("the database is locked")]
    bodies, error = await read(stub.CreateChatCompletion(ask))

    assert bodies == []
    assert error is not None
    trailers = dict(error.trailing_metadata() or ())
    assert trailers["x-http-status"] == "503"
    assert json.loads(trailers["x-error-body"])["error"] == {
        "message": "the database is locked",
        "type": "server_error",
        "param": None,
        "code": "storage_unavailable",
    }


@pytest.mark.parametrize("end", [[ValueError("sk-secret")], []], ids=["unexpected", "without Completed"])
async def test_an_unexpected_end_says_nothing_of_its_cause(gateway: Gateway, stub: Any, end: list[Step]) -> None:
    gateway.conversation.script = [STARTED, RETRIEVED, "They", *end]
    bodies, error = await read(stub.CreateChatCompletion(STREAM))

    assert json.loads(bodies[-1].data.removeprefix(b"data: "))["error"]["code"] == "internal"
    assert error is not None
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in str(error.details()) + str(bodies)
    bodies, error = await read(stub.CreateChatCompletion(WHOLE))
    assert bodies == []
    assert error is not None
    assert error.code() is grpc.StatusCode.INTERNAL


@pytest.mark.parametrize("gateway", [0.02], indirect=True)
async def test_a_silence_is_filled_with_comments(gateway: Gateway, stub: Any) -> None:
    go_on = asyncio.Event()
    gateway.conversation.script = [STARTED, RETRIEVED, "They", go_on, " stay", asyncio.Event()]
    call = stub.CreateChatCompletion(STREAM)
    async with asyncio.timeout(20):
        first, *comments = [(await call.read()).data for _ in range(4)]
        go_on.set()
        following = (await call.read()).data
        while following == COMMENT:
            following = (await call.read()).data

    assert b'"They"' in first
    assert comments == [COMMENT] * 3
    assert b'" stay"' in following


@pytest.mark.parametrize("gateway", [0.001], indirect=True)
async def test_comments_and_events_never_collide(gateway: Gateway, stub: Any) -> None:
    """Text comes at about the moment when a comment is due, again and again, and both ways."""

    async def script(_: ChatRequest, direct: Direct) -> AsyncGenerator[Event, None]:
        yield STARTED
        yield RETRIEVED
        for number in range(300):
            await asyncio.sleep(0.001)
            if number % 2:
                yield f"{number} "
            elif (taking := direct(f"{number} ")) is not None:
                await taking
        yield COMPLETED

    gateway.conversation.chat = script  # type: ignore[assignment]  # no list can sleep between its items
    bodies, error = await read(stub.CreateChatCompletion(STREAM))

    assert error is None
    assert COMMENT in [body.data for body in bodies]
    events = [body for body in bodies if body.data != COMMENT]
    assert text_of(events) == "".join(f"{number} " for number in range(300))


@pytest.mark.parametrize("ask", [STREAM, WHOLE], ids=["stream", "object"])
async def test_a_client_that_leaves_ends_the_conversation(gateway: Gateway, stub: Any, ask: HttpBody) -> None:
    gateway.conversation.script = [STARTED, RETRIEVED, "They", asyncio.Event()]
    call = stub.CreateChatCompletion(ask)
    async with asyncio.timeout(20):
        if ask is STREAM:
            await call.read()
        await gateway.conversation.asked.wait()
        call.cancel()
        await gateway.in_flight.idle()
    assert gateway.conversation.closed.is_set()


async def test_the_conversation_gets_what_the_client_said(gateway: Gateway, stub: Any) -> None:
    body = {
        "model": "chat-grpc",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "assistant", "content": "Welcome."},
            {"role": "user", "content": "One"},
            {"role": "user", "content": [{"type": "text", "text": "two"}, {"type": "text", "text": "three"}]},
            {"role": "assistant", "content": None, "refusal": "No."},
            {"role": "developer", "content": "And plain."},
            {"role": "user", "content": "Left open"},
            {"role": "user", "content": "How?"},
        ],
        "max_tokens": 9_999_999_999_999_999_999_999,
        "temperature": 0,
        "chat_grpc": {"top_k": 2, "filters": {"tag": "docs"}},
    }
    metadata = (("idempotency-key", "mine"), ("x-request-id", "logged"))
    await read(stub.CreateChatCompletion(HttpBody(data=json.dumps(body).encode()), metadata=metadata))

    (said,) = gateway.conversation.requests
    assert said.message == "How?"
    assert said.system == "Be brief.\n\nAnd plain."
    assert said.history is not None
    assert [(item.message, item.answer) for item in said.history] == [
        ("", "Welcome."),
        ("One\n\ntwo\nthree", "No."),
        ("Left open", ""),
    ]
    assert (said.request_id, said.idempotent, said.session_id) == ("mine", True, "")
    assert (said.options.model, said.options.max_tokens, said.options.temperature) == ("m", 8192, 0)
    assert (said.options.top_k, said.options.filters, said.options.retrieval) == (2, {"tag": "docs"}, True)
