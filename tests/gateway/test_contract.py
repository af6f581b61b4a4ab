"""What REST clients rely on, row by row, through a real Envoy and the whole server.

Names, statuses and framing are the contract: fields may be added, never
missing. How a model can fail is told at length in test_failures.py, limits in
test_limits.py.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import re
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from google.protobuf import json_format

from chat_grpc._gen.gateway.v1 import gateway_pb2
from chat_grpc.settings import Settings
from chat_grpc.telemetry.logs import JsonFormatter
from gateway import sse
from gateway.servicer import GatewayServicer
from tests.gateway.edges import Edge, running_edge
from tests.support.memvid import Memvid, memvid
from tests.support.service import Service, service
from tests.support.upstream import Answer, Exchange, Upstream, saying, upstream

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

CHAT_B, CHAT_A = "/api/v1/chat", "/chat"
HELLO = saying("Hello", " there", ".")
SETTINGS = {
    "CHAT_LLM_PROVIDER": "local",
    "CHAT_LLM_MODEL": "test-model",
    "CHAT_REST_RATE_LIMIT": "off",
    "CHAT_ADDRESS_RATE_LIMIT": "off",
    "CHAT_RATE_LIMIT": "off",
    "CHAT_LLM_CONTEXT": "100000",
    # Every failure is to be seen, again and again.
    "CHAT_CACHE_SECONDS": "0",
    "CHAT_LLM_RETRIES": "0",
    "CHAT_LLM_BREAKER_FAILURES": "1000",
    "CHAT_LLM_FIRST_TOKEN_TIMEOUT": "2",
}

LONE = {"CHAT_LLM_PROVIDER": "local", "CHAT_LLM_MODEL": "test-model", "CHAT_LLM_RETRIES": "0"}
"""For services of a test's own, with everything else as it is by default."""


@dataclass
class Answered:
    """An answer that has been read."""

    status: int
    headers: Mapping[str, str]
    content_type: str
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line.removeprefix(b"data: ")) for line in self.body.splitlines() if line]


@dataclass
class Stack:
    """The whole service: Envoy, the server, and doubles of memvid and of a provider."""

    service: Service
    edge: Edge
    model: Upstream
    memory: Memvid
    http: aiohttp.ClientSession

    async def send(self, method: str, path: str, *, json: Any = None, **more: Any) -> Answered:
        """Send a request, and hold the answer to what every answer must keep."""
        async with self.http.request(method, path, json=json, allow_redirects=False, **more) as response:
            body = await response.read()
        answered = Answered(response.status, response.headers, response.content_type, body)
        check_headers(answered)
        return answered

    async def ask(self, path: str = CHAT_B, *, headers: Mapping[str, str] | None = None, **fields: Any) -> Answered:
        """Send a message."""
        first = {"message": "How?"} if path == CHAT_B else {"user_id": "alice", "content": "How?"}
        body = {name: value for name, value in (first | fields).items() if value is not None}
        return await self.send("POST", path, json=body, headers=headers)


@asynccontextmanager
async def started(folder: Path, **settings: str) -> AsyncIterator[Stack]:
    """Run the whole service."""
    memory = Memvid()
    async with upstream() as model, memvid(memory) as port:
        given = {"CHAT_LLM_BASE_URL": model.url, "CHAT_MEMVID_GRPC_URL": f"127.0.0.1:{port}"} | settings
        async with (
            service(folder, **given) as server,
            running_edge(int(server.address.rpartition(":")[2]), folder) as edge,
            aiohttp.ClientSession(edge.url, timeout=aiohttp.ClientTimeout(30)) as http,
        ):
            yield Stack(server, edge, model, memory, http)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    async with started(tmp_path_factory.mktemp("contract"), **SETTINGS) as stack:
        yield stack


@pytest.fixture
def stack(running: Stack) -> Stack:
    """The service with a model that says hello."""
    running.model.answer = HELLO
    running.memory.profile = '{"name": "docs", "title": "The docs", "suggested_questions": ["What is it?"]}'
    return running


def check_headers(answered: Answered) -> None:
    """Every answer has a request id, and nothing of what server and edge say to each other."""
    assert answered.headers["x-request-id"]
    internal = ("grpc-", "x-http-", "x-error-", "x-envoy-", "x-edge-")
    assert [name for name in answered.headers if name.lower().startswith(internal)] == []


def check_error(answered: Answered, status: int, error: str, code: int) -> dict[str, Any]:
    """Hold an error to the one form, and return its details by their types' names."""
    body = answered.json
    assert (answered.status, body["error"], body["code"]) == (status, error, code)
    assert answered.content_type == "application/json"
    assert set(body) == {"detail", "message", "error", "code", "request_id", "details"}
    assert body["detail"] == body["message"] != ""
    assert re.fullmatch(r"[A-Z][A-Z0-9_]+", body["error"])
    assert body["request_id"] == answered.headers["x-request-id"]
    assert int(answered.headers["content-length"]) == len(answered.body)
    details = {
        detail.pop("@type").removeprefix("type.googleapis.com/google.rpc."): detail for detail in body["details"]
    }
    if details:
        assert details["ErrorInfo"]["reason"] == error
        assert details["RequestInfo"] == {"request_id": body["request_id"]}
    if "retry-after" in answered.headers:
        assert int(answered.headers["retry-after"]) >= 1
    return details


def check_time(text: str) -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", text)
    assert datetime.fromisoformat(text).year >= 2024


# API B: POST /api/v1/chat


@pytest.mark.parametrize("stream", [None, True], ids=["absent", "true"])
async def test_stream_true_is_the_default_and_answers_events(stack: Stack, stream: bool | None) -> None:  # noqa: FBT001 (pytest passes it by name)
    answered = await stack.ask(stream=stream)

    assert (answered.status, answered.content_type) == (200, "text/event-stream")
    assert re.fullmatch(rb"(data: \{[^\n]*\}\n\n)+", answered.body)
    retrieval, *tokens, stats, done = answered.events
    assert (retrieval["type"], retrieval["chunks"]) == ("retrieval", 2)
    assert {event["type"] for event in tokens} == {"token"}
    assert "".join(event["content"] for event in tokens) == "Hello there."
    assert all(set(event) == {"type", "content"} for event in tokens)
    assert (stats["type"], stats["chunks"], stats["tokens_used"]) == ("stats", 2, 10)
    assert 0 < stats["elapsed_seconds"] < 30
    assert done["type"] == "done"


async def test_stream_false_answers_one_object(stack: Stack) -> None:
    answered = await stack.ask(stream=False)

    assert (answered.status, answered.content_type) == (200, "application/json")
    body = answered.json
    assert body["id"].startswith("msg_")
    assert str(uuid.UUID(body["session_id"])) == body["session_id"]
    assert body["content"] == body["message"] == "Hello there."
    assert (body["model"], body["cached"]) == ("local/test-model", False)
    assert (body["chunks_retrieved"], body["tokens_used"]) == (2, 10)
    check_time(body["timestamp"])


@pytest.mark.parametrize("message", ["x", "x" * 2000, "\U0001f600" * 2000, "tab\tand\nlines\r\n"], ids=len)
async def test_messages_of_1_to_2000_characters_are_answered(stack: Stack, message: str) -> None:
    assert (await stack.ask(message=message, stream=False)).status == 200


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    "fields",
    [
        {"message": ""},
        {"message": None},
        {"message": " \n\t"},
        {"message": "x" * 2001},
        {"message": "a\x00b"},
        {"session_id": "nope"},
        {"session_id": "7f8f6e54-9d7c-4a3d-9f55-0c1f4f3f6a10\n"},
        {"session_id": "7f8f6e549d7c4a3d9f550c1f4f3f6a10"},
    ],
    ids=["empty", "absent", "blank", "2001", "control", "no UUID", "UUID and more", "UUID without dashes"],
)
async def test_what_breaks_a_rule_is_400_and_named(stack: Stack, fields: dict[str, Any], stream: bool) -> None:  # noqa: FBT001 (pytest passes it by name)
    answered = await stack.ask(**fields, stream=stream)

    details = check_error(answered, 400, "INVALID_REQUEST", 3)
    [fault] = details["BadRequest"]["field_violations"]
    assert [fault["field"]] == list(fields)
    assert fault["description"]


async def test_a_session_goes_on(stack: Stack) -> None:
    first = (await stack.ask(message="First", stream=False)).json
    second = (await stack.ask(message="Second", session_id=first["session_id"].upper(), stream=False)).json

    assert second["session_id"] == first["session_id"]
    assert [turn["content"] for turn in stack.model.chats[-1].messages[1:3]] == ["First", "Hello there."]


async def test_a_failure_after_the_first_event_is_an_event_without_done(stack: Stack) -> None:
    async def cut(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.text("half")
        await asyncio.sleep(0.05)
        exchange.close()

    stack.model.answer = cut
    answered = await stack.ask(headers={"x-request-id": "cut-1"})

    assert (answered.status, answered.content_type) == (200, "text/event-stream")
    assert [event["type"] for event in answered.events] == ["retrieval", "token", "error"]
    error = answered.events[-1]
    assert error["error"]
    assert (error["reason"], error["request_id"]) == ("MODEL_CUT", "cut-1")


async def test_a_comment_comes_every_15_seconds_of_silence() -> None:
    """test_edge.py shows that it does, with a shorter silence."""
    assert inspect.signature(GatewayServicer).parameters["keep_alive"].default == 15.0
    assert sse.KEEP_ALIVE == b": keep-alive\n\n"


# Health


@pytest.mark.parametrize("path", ["/api/v1/health", "/health"])
async def test_health(stack: Stack, path: str) -> None:
    answered = await stack.send("GET", path)

    assert (answered.status, answered.content_type) == (200, "application/json")
    body = answered.json
    assert (body["status"], body["memvid_connected"], body["memvid_frame_count"]) == ("healthy", True, 2)
    assert isinstance(body["active_sessions"], int)
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", body["version"])
    check_time(body["timestamp"])
    assert body["services"] == {"storage": True, "llm": True, "cache": True}
    assert "environment" not in body


async def test_detailed_health_adds_environment(stack: Stack) -> None:
    environment = (await stack.send("GET", "/health?detailed=true")).json["environment"]

    assert set(environment) >= {"python", "platform"}
    assert all(environment.values())


async def test_health_without_memory_is_degraded_and_messages_are_answered(tmp_path: Path) -> None:
    async with started(tmp_path, **LONE, CHAT_MEMVID_GRPC_URL="127.0.0.1:9") as stack:
        answered = await stack.send("GET", "/health")
        assert (answered.status, answered.json["status"], answered.json["memvid_connected"]) == (200, "degraded", False)
        answer = (await stack.ask(stream=False)).json
        assert (answer["chunks_retrieved"], answer["degraded"]) == (0, ["retrieval"])
        check_error(await stack.send("GET", "/api/v1/suggested-questions"), 503, "RETRIEVAL_UNAVAILABLE", 14)


async def test_health_without_a_model_is_unhealthy_and_503(tmp_path: Path) -> None:
    async with started(tmp_path, **LONE, CHAT_LLM_BASE_URL="http://127.0.0.1:9/v1") as stack:
        answered = await stack.send("GET", "/api/v1/health")
        assert (answered.status, answered.json["status"]) == (503, "unhealthy")
        assert answered.json["services"] == {"storage": True, "llm": False, "cache": True}


# Suggested questions


async def test_suggested_questions(stack: Stack) -> None:
    answered = await stack.send("GET", "/api/v1/suggested-questions")

    assert answered.status == 200
    assert answered.json == {"questions": [{"question": "What is it?", "category": "general"}]}


async def test_no_profile_is_404(stack: Stack) -> None:
    stack.memory.profile = None
    check_error(await stack.send("GET", "/api/v1/suggested-questions"), 404, "PROFILE_NOT_FOUND", 5)


# API A: POST /chat


async def test_a_message_of_a_user_is_answered(stack: Stack) -> None:
    answered = await stack.ask(CHAT_A)

    assert (answered.status, answered.content_type) == (200, "application/json")
    body = answered.json
    assert body["id"].startswith("msg_")
    assert (body["content"], body["model"], body["cached"]) == ("Hello there.", "local/test-model", False)
    check_time(body["timestamp"])


@pytest.mark.parametrize(
    "fields",
    [
        {"user_id": "abc"},
        {"user_id": "a" * 100},
        {"user_id": "a.b_c@d:e-f"},
        {"content": "x"},
        {"content": "é" * 10_000},
    ],
    ids=["3", "100", "signs", "1", "10000"],
)
async def test_users_of_3_to_100_and_contents_of_1_to_10000_are_taken(stack: Stack, fields: dict[str, Any]) -> None:
    assert (await stack.ask(CHAT_A, **fields)).status == 200


@pytest.mark.parametrize(
    "fields",
    [
        {"user_id": "ab"},
        {"user_id": "a" * 101},
        {"user_id": "a b c"},
        {"user_id": None},
        {"content": ""},
        {"content": None},
        {"content": "\n "},
        {"content": "x" * 10_001},
        {"session_id": "nope"},
    ],
    ids=["2", "101", "blanks", "no user", "empty", "no content", "blank", "10001", "no UUID"],
)
async def test_what_breaks_a_rule_of_api_a_is_400_and_named(stack: Stack, fields: dict[str, Any]) -> None:
    details = check_error(await stack.ask(CHAT_A, **fields), 400, "INVALID_REQUEST", 3)

    assert [fault["field"] for fault in details["BadRequest"]["field_violations"]] == list(fields)


async def test_every_broken_rule_is_named_at_once(stack: Stack) -> None:
    details = check_error(await stack.ask(CHAT_A, user_id="", content="x" * 10_001), 400, "INVALID_REQUEST", 3)

    assert [fault["field"] for fault in details["BadRequest"]["field_violations"]] == ["user_id", "content"]


async def test_a_text_that_the_model_cannot_read_is_named_as_content(tmp_path: Path) -> None:
    async with started(tmp_path, **LONE, CHAT_LLM_CONTEXT="2000") as stack:
        details = check_error(await stack.ask(CHAT_A, content="word " * 1999), 400, "INVALID_REQUEST", 3)
        assert [fault["field"] for fault in details["BadRequest"]["field_violations"]] == ["content"]


# API A: GET /history


async def test_history_is_a_bare_array_newest_first(stack: Stack) -> None:
    await stack.ask(CHAT_A, user_id="history", content="First", headers={"x-request-id": "first-1"})
    second = (await stack.ask(CHAT_A, user_id="history", content="Second")).json
    await stack.ask(CHAT_A, user_id="another", content="Mine")
    answered = await stack.send("GET", "/history/history")

    assert (answered.status, answered.content_type) == (200, "application/json")
    assert answered.headers["cache-control"] == "no-store"
    newest, oldest = answered.json
    assert (newest["content"], oldest["content"], oldest["request_id"]) == ("Second", "First", "first-1")
    check_time(newest["timestamp"])
    expected = {"id": second["id"], "user_id": "history", "response": "Hello there.", "model": "local/test-model"}
    assert expected.items() <= newest.items()
    assert newest["usage"].items() >= {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}.items()
    # What the schema says is what is written, to the name.
    described = gateway_pb2.HistoryMessage()
    json_format.ParseDict(newest, described)
    assert set(newest) == {field.name for field in described.DESCRIPTOR.fields}


async def test_a_failed_message_is_in_the_history(stack: Stack) -> None:
    stack.model.answer = refuse
    await stack.ask(CHAT_A, user_id="failed")
    [message] = (await stack.send("GET", "/history/failed")).json

    assert (message["status"], message["response"], message["error_reason"]) == ("failed", "", "MODEL_UNAVAILABLE")
    assert isinstance(message["usage"], dict)


async def test_history_of_nobody_is_empty(stack: Stack) -> None:
    answered = await stack.send("GET", "/history/nobody")

    assert (answered.status, answered.body) == (200, b"[]")


async def test_history_is_limited_to_10_to_n_to_100(stack: Stack) -> None:
    for number in range(105):
        await stack.ask(CHAT_A, user_id="many", content=f"m{number}")

    async def listed(query: str) -> list[str]:
        return [message["content"] for message in (await stack.send("GET", f"/history/many{query}")).json]

    newest_first = [f"m{number}" for number in reversed(range(105))]
    assert await listed("") == newest_first[:10]
    assert await listed("?limit=1") == newest_first[:1]
    assert await listed("?limit=42") == newest_first[:42]
    assert await listed("?limit=100") == newest_first[:100]
    assert await listed("?limit=1000") == newest_first[:100]


@pytest.mark.parametrize(
    ("path", "faulty"),
    [
        ("/history/ab", "user_id"),
        ("/history/a%20b", "user_id"),
        ("/history/alice?limit=0", "limit"),
        ("/history/alice?limit=-1", "limit"),
    ],
)
async def test_a_history_that_cannot_be_is_400(stack: Stack, path: str, faulty: str) -> None:
    details = check_error(await stack.send("GET", path), 400, "INVALID_REQUEST", 3)

    assert [fault["field"] for fault in details["BadRequest"]["field_violations"]] == [faulty]


@pytest.mark.parametrize("user", ["a.b-c_d", "me@example.org", "tenant:alice"])
async def test_the_history_of_users_with_signs_in_their_names(stack: Stack, user: str) -> None:
    await stack.ask(CHAT_A, user_id=user)

    for path in (user, user.replace("@", "%40").replace(":", "%3A")):
        [message] = (await stack.send("GET", f"/history/{path}")).json
        assert message["user_id"] == user


# The other routes; their own tests tell more of them.


@pytest.mark.parametrize(
    ("path", "accept", "content_type", "part"),
    [
        ("/metrics", "*/*", "text/plain", b"# TYPE"),
        ("/openapi.json", "*/*", "application/json", b'"3.1'),
        ("/docs", "text/html", "text/html", b"<html"),
        ("/redoc", "text/html", "text/html", b"<html"),
        ("/", "text/html", "text/html", b"<html"),
        ("/", "application/json", "application/json", b'"version"'),
    ],
)
async def test_other_routes(stack: Stack, path: str, accept: str, content_type: str, part: bytes) -> None:
    answered = await stack.send("GET", path, headers={"accept": accept})

    assert (answered.status, answered.content_type) == (200, content_type)
    assert part in answered.body
    if content_type == "application/json" and path == "/":
        assert set(answered.json) >= {"name", "version", "status", "docs"}


# X-Request-ID


@dataclass
class Request:
    """A request to send, by name."""

    name: str
    method: str
    path: str
    body: Any = None
    more: dict[str, Any] = field(default_factory=dict)


ANY = [
    Request("events", "POST", CHAT_B, {"message": "How?"}),
    Request("object", "POST", CHAT_B, {"message": "How?", "stream": False}),
    Request("api a", "POST", CHAT_A, {"user_id": "alice", "content": "How?"}),
    Request("health", "GET", "/health"),
    Request("history", "GET", "/history/alice"),
    Request("error of the server", "POST", CHAT_B, {"message": ""}),
    Request("unknown route", "GET", "/nope"),
    Request("wrong method", "GET", CHAT_B),
    Request("unreadable", "POST", CHAT_B, more={"data": b"{"}),
    Request("too large", "POST", CHAT_B, {"message": "x" * 140_000}),
]


@pytest.mark.parametrize("request_", ANY, ids=lambda request: request.name)
async def test_a_request_id_is_taken_or_made(stack: Stack, request_: Request) -> None:
    async def id_for(*given: str) -> str:
        headers = [("x-request-id", name) for name in given]
        answered = await stack.send(
            request_.method, request_.path, json=request_.body, headers=headers, **request_.more
        )
        if answered.status >= 400:
            assert answered.json["request_id"] == answered.headers["x-request-id"]
        return answered.headers["x-request-id"]

    mine = f"mine-{uuid.uuid4()}"
    assert await id_for(mine) == mine
    made = {await id_for(), await id_for(), await id_for("not fit for a log"), await id_for("x" * 129)}
    assert len(made) == 4
    assert all(re.fullmatch(r"[0-9a-f-]{32,36}", name) for name in made)


async def test_a_request_id_stands_in_every_line_of_the_log(stack: Stack) -> None:
    lines: list[dict[str, Any]] = []

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(json.loads(JsonFormatter().format(record)))

    handler, root = Lines(), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel("INFO")
    try:
        await stack.ask(headers={"x-request-id": "logged-1"}, stream=False)
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    told = [line for line in lines if line["logger"].startswith("chat_grpc")]
    assert told
    assert {line.get("request_id") for line in told} == {"logged-1"}
    [line] = stack.edge.requests(request_id="logged-1")
    assert (line["status"], line["path"]) == (200, CHAT_B)


# Errors


async def refuse(exchange: Exchange) -> None:
    await exchange.refuse(503)


async def empty(exchange: Exchange) -> None:
    await exchange.start()
    await exchange.finish()


async def rubbish(exchange: Exchange) -> None:
    await exchange.start()
    await exchange.send(b"data: {{{\n\n")


async def error_object(exchange: Exchange) -> None:
    await exchange.start()
    await exchange.event({"error": {"message": "SECRET-UPSTREAM-TEXT"}})


async def silent(exchange: Exchange) -> None:
    await exchange.gone.wait()


@pytest.mark.parametrize("path", [CHAT_A, CHAT_B])
@pytest.mark.parametrize(
    ("answer", "status", "error", "code"),
    [
        (saying("half", reason=None), 502, "MODEL_CUT", 14),
        (empty, 502, "MODEL_EMPTY", 14),
        (rubbish, 502, "MODEL_PROTOCOL", 14),
        (error_object, 502, "MODEL_ERROR", 14),
        (refuse, 503, "MODEL_UNAVAILABLE", 14),
        (silent, 504, "MODEL_TIMEOUT", 4),
    ],
    ids=["cut", "empty", "rubbish", "error", "refused", "silent"],
)
async def test_failures_of_the_model_are_502_503_504(
    stack: Stack, path: str, answer: Answer, status: int, error: str, code: int
) -> None:
    stack.model.answer = answer
    more: dict[str, Any] = {"stream": False} if path == CHAT_B else {}
    answered = await stack.ask(path, **more)

    details = check_error(answered, status, error, code)
    assert b"SECRET" not in answered.body
    assert details["ErrorInfo"]["metadata"]["provider"] == "local"
    assert details["RetryInfo"] == {"retry_delay": "2s"}
    assert answered.headers["retry-after"] == "2"


@pytest.mark.parametrize(
    "data",
    [
        b'{"message":',
        b"",
        b"[]",
        b"How?",
        b'{"message":"\xff"}',
        b'{"message":1}',
        b'{"message":"a","stream":3}',
        b'{"message":"a","x":' + b"[" * 50000 + b"]" * 50000 + b"}",
    ],
    ids=["cut", "empty", "array", "text", "not UTF-8", "number", "stream", "deep"],
)
async def test_bodies_that_are_not_json_of_this_route_are_400(stack: Stack, data: bytes) -> None:
    answered = await stack.send("POST", CHAT_B, data=data, headers={"content-type": "application/json"})

    check_error(answered, 400, "INVALID_REQUEST", 3)


async def test_a_parameter_of_the_wrong_type_is_400(stack: Stack) -> None:
    answered = await stack.send("GET", "/history/alice?limit=ten")

    check_error(answered, 400, "INVALID_REQUEST", 3)
    assert "parameter" in answered.json["message"]


@pytest.mark.parametrize("stream", [True, False])
async def test_another_users_session_is_403(stack: Stack, stream: bool) -> None:  # noqa: FBT001 (pytest passes it by name)
    session = (await stack.ask(CHAT_A, user_id="owner")).json["session_id"]

    check_error(await stack.ask(CHAT_A, user_id="thief", session_id=session), 403, "SESSION_OF_ANOTHER_USER", 7)
    check_error(await stack.ask(session_id=session, stream=stream), 403, "SESSION_OF_ANOTHER_USER", 7)


@pytest.mark.parametrize("path", [CHAT_A, CHAT_B])
async def test_an_unknown_session_is_404(stack: Stack, path: str) -> None:
    check_error(await stack.ask(path, session_id=str(uuid.uuid4())), 404, "SESSION_NOT_FOUND", 5)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/nope"),
        ("POST", "/"),
        ("GET", "/api/v1"),
        ("POST", "/api/v1/chat/"),
        ("GET", "/history/"),
        ("GET", "/history/a/b"),
        ("POST", "/gateway.v1.GatewayService/GetHealth"),
    ],
)
async def test_an_unknown_route_is_404_or_405(stack: Stack, method: str, path: str) -> None:
    answered = await stack.send(method, path, json={} if method == "POST" else None)

    if path == "/":
        check_error(answered, 405, "METHOD_NOT_ALLOWED", 12)
    else:
        check_error(answered, 404, "NOT_FOUND", 5)


ROUTES = {
    CHAT_B: "POST",
    CHAT_A: "POST",
    "/health": "GET",
    "/api/v1/health": "GET",
    "/history/alice": "GET",
    "/api/v1/suggested-questions": "GET",
}
METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS")


@pytest.mark.parametrize(
    ("method", "path"), [(method, path) for path in ROUTES for method in METHODS if method != ROUTES[path]]
)
async def test_a_known_route_with_another_method_is_405(stack: Stack, method: str, path: str) -> None:
    answered = await stack.send(method, path)

    check_error(answered, 405, "METHOD_NOT_ALLOWED", 12)
    assert answered.headers["allow"] == ROUTES[path]


async def test_a_request_id_that_named_another_body_is_409(stack: Stack) -> None:
    headers = {"x-request-id": f"named-{uuid.uuid4()}"}
    first = await stack.ask(CHAT_A, user_id="named", content="One", headers=headers)
    again = await stack.ask(CHAT_A, user_id="named", content="One", headers=headers)
    other = await stack.ask(CHAT_A, user_id="named", content="Two", headers=headers)

    assert again.json["id"] == first.json["id"]
    check_error(other, 409, "REQUEST_ID_REUSED", 10)


@pytest.mark.parametrize("path", [CHAT_A, CHAT_B])
async def test_a_body_that_is_too_large_is_413(stack: Stack, path: str) -> None:
    check_error(await stack.send("POST", path, json={"message": "x" * 140_000}), 413, "TOO_LARGE", 8)


async def test_an_unexpected_error_is_500_and_says_nothing_of_its_cause(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def break_down() -> None:
        raise ValueError("sk-secret")

    monkeypatch.setattr(stack.service.parts.conversation, "suggested_questions", break_down)
    answered = await stack.send("GET", "/api/v1/suggested-questions")

    check_error(answered, 500, "INTERNAL", 13)
    assert b"secret" not in answered.body


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_is_dc_in_the_log(stack: Stack, stream: bool) -> None:  # noqa: FBT001 (pytest passes it by name)
    """499 reaches nobody. The access log tells in Envoy's words, and the request to the model has ended."""
    stack.model.answer = silent
    name = f"left-{uuid.uuid4()}"
    asked = len(stack.model.chats)
    call = asyncio.ensure_future(stack.ask(stream=stream, headers={"x-request-id": name}))
    async with asyncio.timeout(20):
        while len(stack.model.chats) == asked:
            await asyncio.sleep(0.01)
        call.cancel()
        await stack.model.chats[-1].gone.wait()
    [line] = await asyncio.to_thread(stack.edge.requests, request_id=name)
    assert line["flags"] == "DC"  # downstream connection: the client closed it
    assert line["status"] == (200 if stream else 0)


async def test_limits_are_10_a_minute_for_an_address_on_api_b_and_60_for_a_user_on_api_a(tmp_path: Path) -> None:
    defaults = Settings()
    assert (defaults.rest_rate_limit, defaults.rate_limit) == ("10/minute", "60/minute")
    async with started(tmp_path, **LONE, CHAT_RATE_LIMIT="2/minute") as stack:
        statuses = [(await stack.ask(stream=False)).status for _ in range(10)]
        assert statuses == [200] * 10
        details = check_error(await stack.ask(stream=False), 429, "RATE_LIMITED", 8)
        assert details["ErrorInfo"]["metadata"] == {"limit": "rest", "quota": "10/minute"}
        # API A has its own limit, of a user.
        assert [(await stack.ask(CHAT_A, user_id="alice")).status for _ in range(2)] == [200, 200]
        answered = await stack.ask(CHAT_A, user_id="alice")
        details = check_error(answered, 429, "RATE_LIMITED", 8)
        assert details["ErrorInfo"]["metadata"] == {"limit": "user", "quota": "2/minute"}
        assert int(answered.headers["retry-after"]) >= float(details["RetryInfo"]["retry_delay"].rstrip("s"))
        assert (await stack.ask(CHAT_A, user_id="robert")).status == 200


async def test_without_a_server_it_is_503(tmp_path: Path) -> None:
    async with (
        running_edge(9, tmp_path) as edge,
        aiohttp.ClientSession(edge.url, timeout=aiohttp.ClientTimeout(30)) as http,
    ):
        for path in (CHAT_A, CHAT_B):
            async with http.post(path, json={}) as response:
                answered = Answered(response.status, response.headers, response.content_type, await response.read())
            check_headers(answered)
            check_error(answered, 503, "UNAVAILABLE", 14)
            assert answered.headers["retry-after"] == "1"


@pytest.mark.parametrize(
    "headers",
    [
        {"x-http-status": "200", "x-error-body": '{"forged":1}'},
        {"grpc-status": "0", "grpc-message": "forged", "grpc-timeout": "1n"},
        {"x-envoy-original-path": "/forged", "x-envoy-original-method": "PUT", "x-edge-request-id": "forged"},
        {"x-envoy-upstream-rq-timeout-ms": "1", "x-envoy-max-retries": "9", "x-envoy-retry-on": "5xx"},
    ],
    ids=["helpers", "grpc", "edge", "envoy"],
)
async def test_what_server_and_edge_say_to_each_other_cannot_be_forged(stack: Stack, headers: dict[str, str]) -> None:
    name = f"forged-{uuid.uuid4()}"
    check_error(await stack.ask(message="", headers=headers), 400, "INVALID_REQUEST", 3)
    answered = await stack.ask(CHAT_A, headers=headers | {"x-request-id": name})

    assert (answered.status, answered.json["content"]) == (200, "Hello there.")
    assert "forged" not in str(answered.headers).replace(name, "")
    [line] = await asyncio.to_thread(stack.edge.requests, request_id=name)
    assert (line["method"], line["path"], line["grpc_status"]) == ("POST", CHAT_A, "0")


async def test_the_access_log_tells_the_grpc_status_of_errors(stack: Stack) -> None:
    stack.model.answer = saying("half", reason=None)
    await stack.ask(headers={"x-request-id": "status-events"})
    await stack.ask(stream=False, headers={"x-request-id": "status-object"})

    [line] = await asyncio.to_thread(stack.edge.requests, request_id="status-events")
    assert (line["status"], line["grpc_status"]) == (200, "14")
    [line] = await asyncio.to_thread(stack.edge.requests, request_id="status-object")
    assert (line["status"], line["grpc_status"]) == (502, "14")
