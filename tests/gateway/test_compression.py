"""What Envoy compresses, and that it holds no event back for it."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway.docs import DOCUMENT, VENDOR
from gateway.web import PAGE
from tests.gateway.edges import Edge, running_edge
from tests.gateway.scripted import COMPLETED, NOTHING, STARTED, Gateway, Step
from tests.support.fixtures import StartService

pytestmark = pytest.mark.e2e

GZIP = {"accept-encoding": "gzip, deflate, br"}
LARGEST = max(VENDOR.iterdir(), key=lambda path: path.stat().st_size)
WHOLE = {
    f"/docs/assets/{LARGEST.name}": LARGEST,
    "/assets/style.css": PAGE / "style.css",
    "/assets/app.js": PAGE / "app.js",
    "/openapi.json": DOCUMENT,
    "/": PAGE / "index.html",
}


def client(edge: Edge) -> aiohttp.ClientSession:
    """A client that shows the bytes as they come, and asks for gzip only where it is told to."""
    return aiohttp.ClientSession(
        edge.url,
        timeout=aiohttp.ClientTimeout(60),
        auto_decompress=False,
        skip_auto_headers=["accept-encoding"],
        headers={"accept": "text/html"},
    )


@pytest.fixture
async def raw(start: StartService, tmp_path: Path) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of the whole server."""
    async with (
        start() as service,
        running_edge(int(service.address.rpartition(":")[2]), tmp_path) as edge,
        client(edge) as session,
    ):
        yield session


async def test_files_are_compressed_where_that_is_asked_for(raw: aiohttp.ClientSession) -> None:
    assert LARGEST.name == "swagger-ui.js"
    for path, file in WHOLE.items():
        data = file.read_bytes()
        async with raw.get(path, headers=GZIP) as response:
            assert response.status == 200
            assert response.headers["content-encoding"] == "gzip", path
            etag = response.headers["etag"]
            assert etag.startswith('W/"')
            assert "accept-encoding" in response.headers["vary"].lower()
            body = await response.read()
        assert len(body) < len(data) / 2
        assert gzip.decompress(body) == data
        # Whoever has it, compressed or not, is not sent it again.
        async with raw.get(path, headers=GZIP | {"if-none-match": etag}) as response:
            assert (response.status, await response.read()) == (304, b"")
        for headers in ({}, {"accept-encoding": "identity"}, {"accept-encoding": "gzip;q=0"}):
            async with raw.get(path, headers=headers) as response:
                assert "content-encoding" not in response.headers
                assert response.headers["etag"] == etag
                assert "accept-encoding" in response.headers["vary"].lower()
                assert await response.read() == data


async def test_what_is_small_is_sent_as_it_is(raw: aiohttp.ClientSession) -> None:
    for path, file in {"/assets/icon.svg": PAGE / "icon.svg", "/assets/theme.js": PAGE / "theme.js"}.items():
        async with raw.get(path, headers=GZIP) as response:
            assert "content-encoding" not in response.headers
            assert await response.read() == file.read_bytes()


async def test_lists_of_messages_are_compressed(raw: aiohttp.ClientSession) -> None:
    message = "Where?" * 200
    async with raw.post("/api/v1/chat", json={"message": message, "stream": False}) as response:
        session = json.loads(await response.read())["session_id"]
    async with raw.get(f"/api/v1/sessions/{session}/messages", headers=GZIP) as response:
        assert response.headers["content-encoding"] == "gzip"
        (listed,) = json.loads(gzip.decompress(await response.read()))["messages"]
    assert listed["message"] == message


def compress_everywhere(config: dict[str, Any]) -> None:
    """Switch the compressor on for every route, as a careless change might."""
    manager = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    (compressor,) = (each for each in manager["http_filters"] if each["name"] == "envoy.filters.http.compressor")
    del compressor["disabled"]


@pytest.mark.parametrize("change", [None, compress_everywhere])
async def test_events_are_neither_compressed_nor_held_back(gateway: Gateway, tmp_path: Path, change: Any) -> None:
    gates = [asyncio.Event() for _ in range(3)]
    texts = [str(number) * 3000 for number in range(len(gates))]  # more than the least that is compressed
    steps: list[Step] = [step for gate, text in zip(gates, texts, strict=True) for step in (gate, text)]
    gateway.conversation.script = [STARTED, NOTHING, *steps, COMPLETED]
    async with (
        running_edge(gateway.grpc_port, tmp_path, change) as edge,
        client(edge) as http,
        asyncio.timeout(20),
        http.post("/api/v1/chat", json={"message": "How?"}, headers=GZIP) as response,
    ):
        assert "content-encoding" not in response.headers
        await response.content.readuntil(b"\n\n")
        for gate, text in zip(gates, texts, strict=True):
            gate.set()
            event = await response.content.readuntil(b"\n\n")
            assert json.loads(event.removeprefix(b"data: "))["content"] == text


async def test_an_answer_as_one_object_is_not_compressed(gateway: Gateway, tmp_path: Path) -> None:
    gateway.conversation.script = [STARTED, NOTHING, "x" * 5000, COMPLETED]
    body = {"content": "How?", "user_id": "ada"}
    async with (
        running_edge(gateway.grpc_port, tmp_path) as edge,
        client(edge) as http,
        http.post("/chat", json=body, headers=GZIP) as response,
    ):
        assert "content-encoding" not in response.headers
        assert "x" * 5000 in await response.text()
