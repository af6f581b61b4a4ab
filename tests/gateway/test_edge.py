"""What clients get through a real Envoy: REST, server-sent events, plain gRPC and gRPC-Web on one port."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

import aiohttp
import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from chat_grpc import errors
from chat_grpc._gen.chat.v1 import chat_pb2, chat_pb2_grpc
from chat_grpc.conversation.health import Health
from tests.gateway.scripted import COMPLETED, NOTHING, STARTED, Gateway, Step, report

pytestmark = pytest.mark.e2e

CHAT = "/api/v1/chat"
UNAVAILABLE = errors.ModelUnavailable("the model can't be reached", provider="openai", stage="connect")


def token(text: str) -> bytes:
    return b'data: {"type":"token","content":"%b"}\n\n' % text.encode()


async def frame(response: aiohttp.ClientResponse) -> bytes:
    """Read one event: a line, and the empty one after it."""
    return await response.content.readuntil(b"\n\n")


async def test_events_arrive_as_server_sent_events(http: aiohttp.ClientSession) -> None:
    async with http.post(CHAT, json={"message": "How?"}) as response:
        body = await response.read()

    assert response.status == 200
    assert response.content_type == "text/event-stream"
    assert response.headers["cache-control"] == "no-cache"
    assert "content-length" not in response.headers
    events = [json.loads(event.removeprefix(b"data: ")) for event in body.split(b"\n\n")[:-1]]
    assert [event["type"] for event in events] == ["retrieval", "token", "token", "stats", "done"]
    assert body.endswith(b'data: {"type":"done","finish_reason":"stop"}\n\n')


async def test_each_event_arrives_before_the_next_one_is_made(gateway: Gateway, http: aiohttp.ClientSession) -> None:
    """Nothing on the way holds an event back: the next one is made only once this one has arrived."""
    gates = [asyncio.Event() for _ in range(5)]
    steps: list[Step] = [step for number, gate in enumerate(gates) for step in (gate, f"word{number} ")]
    gateway.conversation.script = [STARTED, NOTHING, *steps]
    async with http.post(CHAT, json={"message": "How?"}) as response, asyncio.timeout(20):
        assert (await frame(response)).startswith(b'data: {"type":"retrieval"')
        for number, gate in enumerate(gates):
            gate.set()
            assert await frame(response) == token(f"word{number} ")


@pytest.mark.parametrize("gateway", [0.05], indirect=True)
async def test_comments_arrive_in_a_silence(gateway: Gateway, http: aiohttp.ClientSession) -> None:
    gateway.conversation.script = [STARTED, NOTHING, asyncio.Event()]
    async with http.post(CHAT, json={"message": "How?"}) as response, asyncio.timeout(20):
        await frame(response)
        assert [await frame(response) for _ in range(3)] == [b": keep-alive\n\n"] * 3


async def test_stream_false_answers_json(http: aiohttp.ClientSession) -> None:
    async with http.post(CHAT, json={"message": "How?", "stream": False}) as response:
        answer = await response.json()

    assert response.status == 200
    assert response.content_type == "application/json"
    assert (answer["content"], answer["message"], answer["tokens_used"]) == ("They stay", "They stay", 57)


async def test_an_answer_larger_than_any_buffer_arrives_whole(gateway: Gateway, http: aiohttp.ClientSession) -> None:
    gateway.conversation.script = [STARTED, NOTHING, *["x" * 10_000] * 60, COMPLETED]
    async with http.post(CHAT, json={"message": "How?", "stream": False}) as response:
        answer = await response.json()

    assert len(answer["content"]) == 600_000


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("error", "status", "code", "reason"),
    [
        (errors.InvalidRequest([errors.Violation("session_id", "must be a UUID")]), 400, 3, "INVALID_REQUEST"),
        (errors.NotFound("no such session"), 404, 5, "NOT_FOUND"),
        (UNAVAILABLE, 503, 14, "MODEL_UNAVAILABLE"),
        (errors.ModelTimeout("too slow", provider="openai", stage="connect"), 504, 4, "MODEL_TIMEOUT"),
    ],
)
async def test_an_error_before_the_first_event_is_an_http_status(
    gateway: Gateway,
    http: aiohttp.ClientSession,
    error: errors.ChatError,
    status: int,
    code: int,
    reason: str,
    *,
    stream: bool,
) -> None:
    gateway.conversation.script = [STARTED, error]
    async with http.post(CHAT, json={"message": "How?", "stream": stream}) as response:
        body = await response.json()

    assert response.status == status
    assert (body["code"], body["message"]) == (code, error.message)
    info, *_ = body["details"]
    assert (info["@type"], info["reason"]) == ("type.googleapis.com/google.rpc.ErrorInfo", reason)
    assert response.headers.get("retry-after") == ("2" if isinstance(error, errors.ModelError) else None)


async def test_the_rule_that_a_message_breaks_is_named(gateway: Gateway, http: aiohttp.ClientSession) -> None:
    async with http.post(CHAT, json={"message": ""}) as response:
        body = await response.json()

    assert response.status == 400
    (fault,) = next(detail["field_violations"] for detail in body["details"] if "field_violations" in detail)
    assert fault["field"] == "message"
    assert gateway.conversation.requests == []


async def test_an_error_after_the_first_event_is_an_event_and_a_clean_end(
    gateway: Gateway, http: aiohttp.ClientSession
) -> None:
    gateway.conversation.script = [STARTED, NOTHING, "They", UNAVAILABLE]
    async with http.post(CHAT, json={"message": "How?"}, headers={"x-request-id": "mine"}) as response:
        body = await response.read()  # raises when the body is cut

    assert response.status == 200
    assert body.endswith(
        token("They")
        + b'data: {"type":"error","error":"the model can\'t be reached","reason":"MODEL_UNAVAILABLE",'
        + b'"retry_after":2.0,"request_id":"mine"}\n\n'
    )


@pytest.mark.parametrize(
    "script",
    [[STARTED, NOTHING, asyncio.Event()], itertools.chain([STARTED, NOTHING], itertools.repeat("x" * 100))],
    ids=["in a silence", "in a flood"],
)
async def test_a_client_that_leaves_ends_the_conversation(
    gateway: Gateway, http: aiohttp.ClientSession, script: Iterable[Step]
) -> None:
    gateway.conversation.script = script
    async with asyncio.timeout(20):
        response = await http.post(CHAT, json={"message": "How?"})
        await frame(response)
        response.close()  # closes the connection
        await gateway.in_flight.idle()
    assert gateway.conversation.closed.is_set()


@pytest.mark.parametrize(
    "body",
    [b'{"message":', b'{"message":"\xff\xfe"}', b'{"message":1}', b"[]", b"How?", b'{"message":"How?","stream":3}'],
)
async def test_a_body_that_cannot_be_read_is_400(gateway: Gateway, http: aiohttp.ClientSession, body: bytes) -> None:
    async with http.post(CHAT, data=body, headers={"content-type": "application/json"}) as response:
        answer = await response.json()

    assert response.status == 400
    assert (answer["code"], answer["error"]) == (3, "INVALID_REQUEST")
    assert answer["request_id"] == response.headers["x-request-id"]
    assert "How?" not in answer["message"]
    assert gateway.conversation.requests == []


async def test_fields_and_parameters_that_nobody_knows_are_skipped(
    gateway: Gateway, http: aiohttp.ClientSession
) -> None:
    async with http.post(CHAT + "?_=1700000000", json={"message": "How?", "theme": "dark"}) as response:
        assert response.status == 200
    assert gateway.conversation.requests[0].message == "How?"


async def test_a_body_that_is_too_large_is_413(gateway: Gateway, http: aiohttp.ClientSession) -> None:
    async with http.post(CHAT, json={"message": "x" * 140_000}) as response:
        answer = await response.json()

    assert (response.status, answer["error"]) == (413, "TOO_LARGE")
    assert gateway.conversation.requests == []


@pytest.mark.parametrize("path", ["/nope", "/api/v1/chat/", "/gateway.v1.GatewayService/GetHealth"])
async def test_an_unknown_route_is_404(http: aiohttp.ClientSession, path: str) -> None:
    async with http.post(path, json={}) as response:
        answer = await response.json()

    assert response.status == 404
    assert answer == {
        "code": 5,
        "error": "NOT_FOUND",
        "message": "there is no such route",
        "detail": "there is no such route",
        "request_id": response.headers["x-request-id"],
        "details": [],
    }


@pytest.mark.parametrize(("method", "path", "allowed"), [("GET", CHAT, "POST"), ("POST", "/health", "GET")])
async def test_a_known_route_with_another_method_is_405(
    http: aiohttp.ClientSession, method: str, path: str, allowed: str
) -> None:
    async with http.request(method, path) as response:
        assert (response.status, response.headers["allow"]) == (405, allowed)


async def test_a_request_id_is_kept_or_made(http: aiohttp.ClientSession) -> None:
    async with http.post(CHAT, json={"message": "How?"}, headers={"x-request-id": "mine-1"}) as response:
        assert response.headers["x-request-id"] == "mine-1"
    async with http.get("/nope") as response:
        assert response.headers["x-request-id"]


@pytest.mark.parametrize("path", ["/api/v1/health", "/health"])
async def test_health_names_every_field_also_those_that_are_zero(http: aiohttp.ClientSession, path: str) -> None:
    async with http.get(path) as response:
        assert response.status == 200
        assert not [name for name in response.headers if name.lower().startswith("grpc-")]
        answer = await response.json()
        assert datetime.fromisoformat(answer.pop("timestamp")).tzinfo is UTC
        assert answer == {
            "status": "degraded",
            "memvid_connected": False,
            "memvid_frame_count": 0,
            "active_sessions": 0,
            "version": "0.0.1",
            "services": {"storage": True, "llm": True, "cache": True},
        }


async def test_unhealthy_is_503_with_the_same_fields(gateway: Gateway, http: aiohttp.ClientSession) -> None:
    gateway.health.answer = report(Health.UNHEALTHY, model=False)
    async with http.get("/api/v1/health") as response:
        assert response.status == 503
        answer = await response.json()
        assert (answer["status"], answer["services"]["llm"]) == ("unhealthy", False)
        assert "x-http-status" not in response.headers


async def test_without_a_server_it_is_503_and_says_so(
    gateway: Gateway, http: aiohttp.ClientSession, edge_channel: grpc.aio.Channel
) -> None:
    await gateway.server.stop(None)
    async with http.post(CHAT, json={"message": "How?"}) as response:
        answer = await response.json()

    assert (response.status, response.headers["retry-after"]) == (503, "1")
    assert (answer["error"], answer["message"]) == (
        "UNAVAILABLE",
        "the chat server can't be reached; try again in a moment",
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await health_pb2_grpc.HealthStub(edge_channel).Check(health_pb2.HealthCheckRequest())
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert caught.value.details() == "the chat server can't be reached; try again in a moment"


async def test_plain_grpc_passes_through(edge_channel: grpc.aio.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(edge_channel)
    assert (await stub.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING
    watch = stub.Watch(health_pb2.HealthCheckRequest())
    async with asyncio.timeout(20):
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()

    ask = reflection_pb2.ServerReflectionRequest(list_services="")
    stub = reflection_pb2_grpc.ServerReflectionStub(edge_channel)
    call: Any = stub.ServerReflectionInfo()
    async with asyncio.timeout(20):
        await call.write(ask)
        answer = await call.read()  # while the client may still ask more
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
    assert "gateway.v1.GatewayService" in [service.name for service in answer.list_services_response.service]


async def test_plain_grpc_streams_arrive_one_by_one(gateway: Gateway, edge_channel: grpc.aio.Channel) -> None:
    gate = asyncio.Event()
    gateway.conversation.script = ["They", gate, " stay"]
    call: Any = chat_pb2_grpc.ChatServiceStub(edge_channel).Chat(chat_pb2.ChatRequest(message="How?"))
    async with asyncio.timeout(20):
        assert (await call.read()).delta.text == "They"
        gate.set()
        assert (await call.read()).delta.text == " stay"
        assert await call.read() is grpc.aio.EOF


async def test_an_unknown_grpc_method_is_unimplemented(edge_channel: grpc.aio.Channel) -> None:
    method: Any = edge_channel.unary_unary("/no.such.Service/Method")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await method(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_grpc_web_passes_through(gateway: Gateway, http: aiohttp.ClientSession) -> None:
    gateway.conversation.script = ["They", " stay"]
    body = web_frame(chat_pb2.ChatRequest(message="How?").SerializeToString())
    headers = {"content-type": "application/grpc-web+proto", "x-grpc-web": "1"}
    async with http.post("/chat.v1.ChatService/Chat", data=body, headers=headers) as response:
        raw = await response.read()

    assert (response.status, response.content_type) == (200, "application/grpc-web+proto")
    *messages, (flag, trailers) = web_frames(raw)
    assert [chat_pb2.ChatResponse.FromString(message).delta.text for _, message in messages] == ["They", " stay"]
    assert flag == 0x80
    assert b"grpc-status:0" in trailers


async def test_headers_with_underscores_are_refused(gateway: Gateway, http: aiohttp.ClientSession) -> None:
    async with http.post(CHAT, json={"message": "How?"}, headers={"x_request_id": "mine"}) as response:
        assert response.status == 400
    assert gateway.conversation.requests == []


async def test_one_connection_serves_rest_again_and_again(edge_port: int) -> None:
    """A finished stream of events leaves its HTTP/1.1 connection fit for the next request."""
    connections = []

    async def connected(*_: object) -> None:
        connections.append(1)

    tracing = aiohttp.TraceConfig()
    tracing.on_connection_create_end.append(connected)
    async with aiohttp.ClientSession(f"http://127.0.0.1:{edge_port}", trace_configs=[tracing]) as session:
        for _ in range(3):
            async with session.post(CHAT, json={"message": "How?"}) as response:
                await response.read()
    assert len(connections) == 1


def web_frame(message: bytes, flag: int = 0) -> bytes:
    return bytes([flag]) + len(message).to_bytes(4, "big") + message


def web_frames(raw: bytes) -> Iterator[tuple[int, bytes]]:
    while raw:
        size = int.from_bytes(raw[1:5], "big")
        yield raw[0], raw[5 : 5 + size]
        raw = raw[5 + size :]


async def test_an_error_with_very_much_to_say_arrives(gateway: Gateway, http: aiohttp.ClientSession) -> None:
    text = "\U0001f600" * 5_000
    gateway.conversation.script = [errors.InvalidRequest([errors.Violation(text, text) for _ in range(100)])]
    async with http.post(CHAT, json={"message": "How?"}) as response:
        body = await response.json()

    assert (response.status, body["error"]) == (400, "INVALID_REQUEST")
    assert len(next(detail for detail in body["details"] if "field_violations" in detail)["field_violations"]) == 8
