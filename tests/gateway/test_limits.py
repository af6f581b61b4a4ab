"""Limits through a real Envoy in front of the real server: who is counted, and what HTTP clients are told."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest

from chat_grpc._gen.chat.v1 import chat_pb2, chat_pb2_grpc
from tests.support.fixtures import StartService
from tests.support.process import chat_grpc, free_port
from tests.support.service import failure_of
from tests.support.upstream import Exchange, Upstream, saying

pytestmark = pytest.mark.e2e

CHAT = "/api/v1/chat"
StartEdge = Callable[..., AbstractAsyncContextManager[str]]

SPOOFED = [
    {"x-forwarded-for": "203.0.113.5"},
    {"x-forwarded-for": "203.0.113.5, 127.0.0.1"},
    {"x-envoy-external-address": "203.0.113.5"},
    {"x-real-ip": "203.0.113.5", "forwarded": "for=203.0.113.5", "true-client-ip": "203.0.113.5"},
    {"x-envoy-external-address": "203.0.113.5", "x-forwarded-for": "203.0.113.5", "x-envoy-internal": "true"},
]


@pytest.fixture
def start_edge(start: StartService, tmp_path: Path) -> StartEdge:
    """Start the server and an Envoy in front of it; keywords are settings. The address of the edge is yielded."""

    @asynccontextmanager
    async def starting(**settings: str) -> AsyncIterator[str]:
        async with start(**settings) as service:
            ports = {"CHAT_HTTP_PORT": str(free_port()), "CHAT_GRPC_PORT": service.address.rpartition(":")[2]}
            async with chat_grpc("envoy", folder=tmp_path, **ports) as process:
                await _listening(int(ports["CHAT_HTTP_PORT"]), process.inner)
                yield f"127.0.0.1:{ports['CHAT_HTTP_PORT']}"

    return starting


async def _listening(port: int, process: asyncio.subprocess.Process) -> None:
    async with asyncio.timeout(60):
        while True:
            assert process.returncode is None
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                await asyncio.sleep(0.02)
                continue
            writer.close()
            return


def client(edge: str, source: str = "127.0.0.1") -> aiohttp.ClientSession:
    """Make an HTTP client of the edge that calls from an address."""
    connector = aiohttp.TCPConnector(local_addr=(source, 0))
    return aiohttp.ClientSession(f"http://{edge}", connector=connector, timeout=aiohttp.ClientTimeout(30))


async def status_of(http: aiohttp.ClientSession, **more: Any) -> int:
    """Ask, and return the status of a whole answer."""
    async with http.post(CHAT, json={"message": "How?"}, **more) as response:
        await response.read()
        return response.status


def has_second_address() -> bool:
    try:
        with socket.socket() as probe:
            probe.bind(("127.0.0.2", 0))
    except OSError:
        return False
    return True


@pytest.mark.parametrize("stream", [True, False])
async def test_too_many_messages_get_429_and_retry_after(start_edge: StartEdge, stream: bool) -> None:  # noqa: FBT001 (pytest passes it by name)
    async with start_edge(RATE_LIMIT_PER_MINUTE="2") as edge, client(edge) as http:
        for _ in range(2):
            assert await status_of(http) == 200
        async with http.post(CHAT, json={"message": "How?", "stream": stream}) as response:
            body = await response.json()
        assert response.status == 429
        assert response.content_type == "application/json"
        assert 1 <= int(response.headers["retry-after"]) <= 30
        assert body["code"] == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
        assert "2/minute" in body["message"]
        details = {detail["@type"].rpartition(".")[2]: detail for detail in body["details"]}
        assert details["ErrorInfo"]["reason"] == "RATE_LIMITED"
        assert details["ErrorInfo"]["metadata"] == {"limit": "rest", "quota": "2/minute"}
        assert 0 < float(details["RetryInfo"]["retry_delay"].rstrip("s")) <= 30


async def test_health_is_never_refused(start_edge: StartEdge) -> None:
    async with start_edge(RATE_LIMIT_PER_MINUTE="1") as edge, client(edge) as http:
        assert [await status_of(http) for _ in range(2)] == [200, 429]
        for _ in range(30):
            async with http.get("/api/v1/health") as response:
                assert response.status == 200


@pytest.mark.parametrize("headers", SPOOFED, ids=str)
async def test_claiming_another_address_gains_nothing(start_edge: StartEdge, headers: dict[str, str]) -> None:
    async with start_edge(RATE_LIMIT_PER_MINUTE="1") as edge, client(edge) as http:
        assert await status_of(http) == 200
        assert await status_of(http, headers=headers) == 429


async def test_claiming_another_address_costs_nobody_else(start_edge: StartEdge) -> None:
    """What a client claims is not counted against whom it names either."""
    if not has_second_address():
        pytest.skip("this machine has one loopback address only")
    async with start_edge(RATE_LIMIT_PER_MINUTE="1") as edge, client(edge) as http, client(edge, "127.0.0.2") as other:
        for headers in ({"x-forwarded-for": "127.0.0.2"}, {"x-envoy-external-address": "127.0.0.2"}):
            await status_of(http, headers=headers)
        assert await status_of(other) == 200
        assert await status_of(other) == 429


@pytest.mark.parametrize("name", ["x-forwarded-for", "x-envoy-external-address"])
async def test_claiming_another_address_gains_nothing_over_grpc(start_edge: StartEdge, name: str) -> None:
    async with start_edge(CHAT_ADDRESS_RATE_LIMIT="1/hour") as edge, grpc.aio.insecure_channel(edge) as channel:
        stub = chat_pb2_grpc.ChatServiceStub(channel)
        assert [event async for event in stub.Chat(chat_pb2.ChatRequest(message="How?"))]
        # More than one, in case only the first is replaced.
        spoofed = ((name, "203.0.113.5"), (name, "203.0.113.6"))
        failure = await failure_of(stub.Chat(chat_pb2.ChatRequest(message="How?"), metadata=spoofed))
        assert (failure.code, failure.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED")
        assert failure.details["RetryInfo"].retry_delay.seconds > 3_000
        assert int(failure.trailers["retry-after"]) > 3_000


async def test_too_many_streams_get_429(start_edge: StartEdge, model: Upstream) -> None:
    async def endless(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.text("Well")
        await exchange.gone.wait()

    model.answer = endless
    async with start_edge(CHAT_MAX_STREAMS="1", CHAT_QUEUE_LENGTH="0") as edge, client(edge) as http:
        async with http.post(CHAT, json={"message": "How?"}) as response:
            assert response.status == 200
            assert await response.content.readuntil(b"\n\n")
            async with http.post(CHAT, json={"message": "And how?"}) as second:
                body = await second.json()
            assert second.status == 429
            assert int(second.headers["retry-after"]) >= 1
            info = next(detail for detail in body["details"] if detail["@type"].endswith("ErrorInfo"))
            assert (info["reason"], info["metadata"]["limit"]) == ("TOO_MANY_STREAMS", "streams_total")
        # The closed tab frees the place.
        model.answer = saying("Hello")
        async with asyncio.timeout(30):
            while await status_of(http) != 200:
                await asyncio.sleep(0.05)
