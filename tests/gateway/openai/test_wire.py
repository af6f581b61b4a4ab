"""The bytes of OpenAI's routes through the real Envoy: framing, errors, and the schemas that describe them."""

from __future__ import annotations

import io
import json
from typing import Any

import aiohttp
import pytest
from jsonschema import Draft202012Validator

from gateway.openai_shapes import schemas
from tests.gateway.openai.conftest import Edge, envoy
from tests.gateway.openai.test_python_sdk import INVALID, REFUSED
from tests.support.process import free_port
from tests.support.upstream import Exchange, Upstream, saying

pytestmark = pytest.mark.e2e

COMPLETIONS = "/v1/chat/completions"
ASKED = {"messages": [{"role": "user", "content": "How?"}]}
NOT_IN_THE_SCHEMA = ("messages", "messages[1].role")
"""Rules that JSON Schema has no words for: lengths of texts that may come in parts, and who speaks last."""


def validator(name: str) -> Draft202012Validator:
    """Return what tells whether a JSON value has one of the documented forms."""
    return Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": {"schemas": schemas()}})


async def post(edge: Edge, body: Any, **headers: str) -> tuple[int, dict[str, str], str]:
    """Post JSON, or the bytes themselves, and return status, headers and body."""
    data = io.BytesIO(body if isinstance(body, bytes) else json.dumps(body).encode())
    headers = {"content-type": "application/json", **headers}
    async with edge.http() as http, http.post(COMPLETIONS, data=data, headers=headers) as response:
        return response.status, {name.lower(): value for name, value in response.headers.items()}, await response.text()


def chunks(body: str) -> list[dict[str, Any]]:
    """Return the events of a stream but for the [DONE] that it ends with."""
    *events, done, rest = body.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    assert all(event.startswith("data: {") and "\n" not in event for event in events)
    return [json.loads(event.removeprefix("data: ")) for event in events]


async def test_a_stream_to_the_byte(running: Edge, model: Upstream) -> None:
    model.answer = saying("They stay")
    status, headers, body = await post(running, {**ASKED, "stream": True, "chat_grpc": {"retrieval": False}})

    assert (status, headers["content-type"], headers["cache-control"]) == (200, "text/event-stream", "no-cache")
    assert headers["x-accel-buffering"] == "no"
    assert headers["x-request-id"]
    assert not [name for name in headers if name.startswith(("grpc-", "x-http-", "x-error-"))]
    first, *_ = chunks(body)
    extras = first["chat_grpc"]
    assert extras == {"message_id": extras["message_id"], "session_id": extras["session_id"], "passages": []}
    head = f'data: {{"id":"{first["id"]}","object":"chat.completion.chunk","created":{first["created"]},"model":"test-model"'
    none = '"index":0,"logprobs":null'
    assert body == (
        f'{head},"choices":[{{"delta":{{"role":"assistant","content":""}},"finish_reason":null,{none}}}],'
        f'"chat_grpc":{json.dumps(extras, separators=(",", ":"))}}}\n\n'
        f'{head},"choices":[{{"delta":{{"content":"They stay"}},"finish_reason":null,{none}}}]}}\n\n'
        f'{head},"choices":[{{"delta":{{}},"finish_reason":"stop",{none}}}],'
        '"chat_grpc":{"model":"local/test-model","cached":false,"degraded":[]}}\n\n'
        "data: [DONE]\n\n"
    )


@pytest.mark.parametrize("usage", [None, {}, {"include_usage": False}, {"include_usage": None}])
async def test_usage_is_told_only_when_asked_for(running: Edge, usage: dict[str, Any] | None) -> None:
    _, _, body = await post(running, {**ASKED, "stream": True, "stream_options": usage})
    assert not any("usage" in chunk for chunk in chunks(body))


async def test_text_that_would_break_the_framing_stays_one_line(running: Edge, model: Upstream) -> None:
    text = 'a\n\ndata: [DONE]\r\n"\\ "content":"" \u2028 é 漢 😀'
    model.answer = saying(text, text)
    _, _, body = await post(running, {**ASKED, "stream": True})
    said = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks(body))
    assert said == text * 2


async def test_why_a_model_stopped_is_told(running: Edge, model: Upstream) -> None:
    for reason in ("length", "content_filter"):
        model.answer = saying("Well", reason=reason)
        body: dict[str, Any] = {**ASKED, "chat_grpc": {"skip_cache": True}}
        _, _, whole = await post(running, body)
        assert json.loads(whole)["choices"][0]["finish_reason"] == reason
        _, _, streamed = await post(running, {**body, "stream": True})
        assert chunks(streamed)[-1]["choices"][0]["finish_reason"] == reason


async def test_answers_have_the_documented_forms(running: Edge) -> None:
    status, headers, body = await post(running, ASKED)
    assert (status, headers["content-type"]) == (200, "application/json")
    validator("ChatCompletion").validate(json.loads(body))
    _, _, body = await post(running, {**ASKED, "stream": True, "stream_options": {"include_usage": True}})
    for chunk in chunks(body):
        validator("ChatCompletionChunk").validate(chunk)


def test_the_schema_of_a_request_takes_what_the_server_takes() -> None:
    checked = validator("ChatCompletionRequest")
    Draft202012Validator.check_schema(checked.schema)
    checked.validate(ASKED)
    checked.validate({**ASKED, "n": 1, "stop": None, "tools": [], "metadata": {"purpose": "x"}, "seed": 7, "top_p": 1})
    refused = [*REFUSED, *((body, param) for body, param in INVALID if param not in NOT_IN_THE_SCHEMA)]
    assert [body for body, _ in refused if checked.is_valid({**ASKED, **body})] == []


MALFORMED = {
    "nothing": b"",
    "cut": b'{"messages":[{"role":"user"',
    "two": b'{"messages":[{"role":"user","content":"How?"}]}{}',
    "no object": b"[]",
    "not UTF-8": b'{"messages":[{"role":"user","content":"\xff"}]}',
    "half a character": b'{"messages":[{"role":"user","content":"\\ud800"}]}',
    "deep": b'{"messages":[{"role":"user","content":"How?"}],"x":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "binary": bytes(range(256)),
}


@pytest.mark.parametrize("kind", MALFORMED)
async def test_a_body_that_is_not_json_gets_400(running: Edge, kind: str) -> None:
    status, headers, body = await post(running, MALFORMED[kind])
    assert (status, headers["content-type"]) == (400, "application/json")
    error = json.loads(body)
    validator("ErrorResponse").validate(error)
    assert error["error"] == {
        "message": "the body must be one JSON object in UTF-8",
        "type": "invalid_request_error",
        "param": None,
        "code": "invalid_value",
    }


HOSTILE = ['"', "\r\nset-cookie: a=b", "\x00\x7f", "漢字 😀", "x" * 100_000, "{{}}%LOCAL_REPLY_BODY%"]


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: repr(name[:20]))
async def test_a_model_s_name_stays_text(running: Edge, name: str) -> None:
    status, headers, body = await post(running, {**ASKED, "model": name})
    assert status == 404
    assert "set-cookie" not in headers
    error = json.loads(body)
    validator("ErrorResponse").validate(error)
    assert f"'{name[:20]}" in error["error"]["message"]
    assert len(body) < 2_000


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", COMPLETIONS, 405, "POST"),
        ("DELETE", "/v1/models/test-model", 405, "GET"),
        ("POST", "/v1/models", 405, "GET"),
        ("POST", "/v1/embeddings", 404, None),
        ("POST", "/v1/responses", 404, None),
        ("GET", "/v1/models/", 404, None),
        ("GET", "/v1/models/unknown", 404, None),
        ("GET", "/v1/chat/completions/chatcmpl-1", 404, None),
    ],
)
async def test_other_routes_answer_in_openai_s_form(
    running: Edge, method: str, path: str, status: int, allow: str | None
) -> None:
    async with running.http() as http, http.request(method, path, json={}) as response:
        body = await response.json()
    assert (response.status, response.headers.get("allow")) == (status, allow)
    validator("ErrorResponse").validate(body)
    assert body["error"]["type"] == "invalid_request_error"


async def test_a_body_that_is_too_large_gets_413(running: Edge, model: Upstream) -> None:
    status, _, body = await post(running, {"messages": [{"role": "user", "content": "x" * 1_048_577}]})
    assert status == 413
    error = json.loads(body)
    validator("ErrorResponse").validate(error)
    assert "1 MiB" in error["error"]["message"]
    # The largest body arrives, and is told what is wrong with it.
    frame = len(json.dumps({"messages": [{"role": "user", "content": ""}]}))
    status, _, body = await post(running, {"messages": [{"role": "user", "content": "x" * (1_048_576 - frame)}]})
    assert status == 400
    assert "at most 10,000 characters" in json.loads(body)["error"]["message"]
    assert model.chats == []


async def test_a_server_that_is_not_there_gets_503() -> None:
    async with (
        envoy(free_port()) as url,
        aiohttp.ClientSession(url) as http,
        http.post(COMPLETIONS, json=ASKED) as response,
    ):
        assert (response.status, response.headers["retry-after"]) == (503, "1")
        error = await response.json()
    validator("ErrorResponse").validate(error)
    assert error["error"]["type"] == "server_error"


async def test_the_request_s_id_finds_the_message(running: Edge) -> None:
    _, headers, body = await post(running, ASKED, **{"x-request-id": "mine-1"})
    assert headers["x-request-id"] == "mine-1"
    [kept] = await running.service.messages(session_id=json.loads(body)["chat_grpc"]["session_id"])
    assert kept.request_id == "mine-1"


async def test_a_failure_in_the_stream_is_its_last_event(running: Edge, model: Upstream) -> None:
    async def cut(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.text("half")
        exchange.close()

    model.answer = cut
    status, _, body = await post(running, {**ASKED, "stream": True})
    assert status == 200
    *_, last, rest = body.split("\n\n")
    assert rest == ""
    error = json.loads(last.removeprefix("data: "))
    validator("ErrorResponse").validate(error)
    assert "[DONE]" not in body
    assert "SECRET" not in body
