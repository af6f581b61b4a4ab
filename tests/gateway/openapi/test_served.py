"""The document through Envoy: it is what is served, and answers are what it says."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
import pytest

from tests.gateway.openapi.checking import Document, event_faults, events_of, faults, operations, resolved
from tests.support.upstream import Exchange, Upstream

pytestmark = pytest.mark.e2e

VALUES = {
    "user_id": "alice",
    "name": "swagger-ui.css",
    "model": "default",
    "session_id": "7f8f6e54-9d7c-4a3d-9f55-0c1f4f3f6a10",
}
"""What stands in the places of paths."""
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")


async def test_the_document_is_served_as_it_is_committed(http: aiohttp.ClientSession, document: Document) -> None:
    async with http.get("/openapi.json") as response:
        assert response.status == 200
        assert response.content_type == "application/json"
        assert await response.json() == document
        etag = response.headers["etag"]
    async with http.get("/openapi.json", headers={"if-none-match": etag}) as response:
        assert response.status == 304
        assert response.headers["etag"] == etag
        assert await response.read() == b""


async def test_envoy_serves_every_route_of_the_document_by_its_methods_only(
    http: aiohttp.ClientSession, document: Document
) -> None:
    listed: dict[str, set[str]] = {}
    for method, path, _ in operations(document):
        listed.setdefault(path, set()).add(method)
    for path, methods in listed.items():
        for method in METHODS:
            async with http.request(method, path.format(**VALUES), json={} if method == "POST" else None) as response:
                where = f"{method} {path}"
                if method in methods:
                    assert str(response.status) in document["paths"][path][method.lower()]["responses"], where
                    assert "no such route" not in await response.text(), where
                else:
                    assert response.status == 405, where
                    assert {name.strip() for name in response.headers["allow"].split(",")} == methods, where


async def test_an_unknown_route_has_the_form_of_errors(http: aiohttp.ClientSession, document: Document) -> None:
    async with http.get("/nowhere") as response:
        assert response.status == 404
        assert faults(document, {"$ref": "#/components/schemas/Error"}, await response.json()) == []


@pytest.mark.parametrize(
    "name", ["x-star*", "x+plus", "x-percent%", "x-data-bin", "grpc-timeout", "grpc-previous-rpc-attempts"]
)
async def test_headers_that_grpc_would_refuse_do_no_harm(http: aiohttp.ClientSession, name: str) -> None:
    async with http.get("/v1/models", headers={name: "not for gRPC"}) as response:
        assert response.status == 200, await response.text()


async def cut(exchange: Exchange) -> None:
    await exchange.start()
    await exchange.text("half")
    exchange.close()


CHAT = {"message": "How?"}
COMPLETION = {
    "model": "default",
    "messages": [{"role": "user", "content": "How?"}],
    "stream": True,
    "stream_options": {"include_usage": True},
}


@pytest.mark.parametrize(
    ("path", "body", "last"),
    [("/api/v1/chat", CHAT, '"type":"done"'), ("/v1/chat/completions", COMPLETION, "[DONE]")],
    ids=["chat", "openai"],
)
@pytest.mark.parametrize("fails", [False, True], ids=["whole", "cut"])
async def test_streams_carry_what_the_document_says(
    http: aiohttp.ClientSession,
    document: Document,
    model: Upstream,
    path: str,
    body: dict[str, Any],
    last: str,
    *,
    fails: bool,
) -> None:
    if fails:
        model.answer = cut
    async with http.post(path, json=body) as response:
        assert response.status == 200
        assert response.content_type == "text/event-stream"
        text = await response.text()
    assert (last in events_of(text)[-1]) != fails
    assert len(events_of(text)) >= 3
    described = resolved(document, document["paths"][path]["post"]["responses"]["200"])
    assert event_faults(document, described["content"]["text/event-stream"]["schema"], text) == []


async def test_failures_are_what_the_document_says(
    http: aiohttp.ClientSession, document: Document, model: Upstream
) -> None:
    async def refuse(exchange: Exchange) -> None:
        await exchange.refuse(503)

    for answer in (cut, refuse):
        model.answer = answer
        for path, body in (
            ("/api/v1/chat", CHAT | {"stream": False}),
            ("/chat", {"user_id": "alice", "content": "How?"}),
            ("/v1/chat/completions", COMPLETION | {"stream": False}),
        ):
            async with http.post(path, json=body) as response:
                assert response.status in {502, 503}, path
                described = resolved(document, document["paths"][path]["post"]["responses"][str(response.status)])
                assert faults(document, described["content"]["application/json"]["schema"], await response.json()) == []
                assert int(response.headers["retry-after"]) > 0


async def test_the_examples_of_requests_are_answered(http: aiohttp.ClientSession, document: Document) -> None:
    sent = 0
    for method, path, operation in operations(document):
        media = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
        for example in media.get("examples", {}).values():
            async with http.request(method, path, json=example["value"]) as response:
                assert response.status == 200, (path, json.dumps(example), await response.text())
                sent += 1
    assert sent >= 5
