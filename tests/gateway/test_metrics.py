"""GET /metrics through the real Envoy, and what REST clients' calls leave behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest

from tests.gateway.edges import running_edge
from tests.support.fixtures import StartService
from tests.support.memvid import Memvid
from tests.support.metrics import Scrape, scrape
from tests.support.service import Service
from tests.support.upstream import Exchange, Upstream

pytestmark = pytest.mark.e2e

CHAT = "/api/v1/chat"
METHOD = "gateway.v1.GatewayService/Chat"
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"


@asynccontextmanager
async def behind_envoy(service: Service, **settings: Any) -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTP client of an Envoy in front of a server."""
    folder = Path(service.settings.database_url.partition("///")[2]).parent
    timeout = aiohttp.ClientTimeout(20)
    async with (
        running_edge(int(service.address.rpartition(":")[2]), folder, **settings) as edge,
        aiohttp.ClientSession(edge.url, timeout=timeout) as session,
    ):
        yield session


async def metrics(http: aiohttp.ClientSession) -> Scrape:
    """Read the metrics as Prometheus does."""
    async with http.get("/metrics") as response:
        assert response.status == 200
        assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert "grpc-status" not in response.headers
        return Scrape(await response.text())


async def post(http: aiohttp.ClientSession, message: str = "How?", **headers: str) -> tuple[int, str]:
    async with http.post(CHAT, json={"message": message}, headers=headers) as response:
        return response.status, await response.text()


async def test_rest_chats_are_counted(start: StartService, model: Upstream) -> None:
    async def paced(exchange: Exchange) -> None:
        await exchange.start()
        for piece in ("one ", "two ", "three"):
            await exchange.text(piece)
            await asyncio.sleep(0.03)
        await exchange.finish()

    model.answer = paced
    async with start(CHAT_REST_RATE_LIMIT="2/minute") as service, behind_envoy(service) as http:
        statuses = [(await post(http, message))[0] for message in ("How?", "How?", "How?", "")]
        assert statuses == [200, 200, 429, 400]
        now = await metrics(http)
    assert now("chat_grpc_requests_total", method=METHOD, code="OK") == 2
    assert now("chat_grpc_requests_total", method=METHOD, code="RESOURCE_EXHAUSTED") == 1
    assert now("chat_grpc_requests_total", method=METHOD, code="INVALID_ARGUMENT") == 1
    assert now("chat_grpc_limit_refusals_total", limit="rest") == 1
    assert now("chat_grpc_limit_refusals_total") == 1
    assert now("chat_grpc_messages_total", status="completed") == 2
    assert now("chat_grpc_cache_lookups_total", result="hit") == 1
    assert now("chat_grpc_answers_total", outcome="completed", provider="local") == 1
    assert now("chat_grpc_inter_token_seconds_count") == 2
    assert now("chat_grpc_tokens_total") == 10


async def test_an_error_after_the_first_event_is_counted_as_one(start: StartService, model: Upstream) -> None:
    async def cut(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.text("half")
        await asyncio.sleep(0.05)
        exchange.close()

    model.answer = cut
    async with start() as service, behind_envoy(service) as http:
        status, body = await post(http)
        assert status == 200
        assert '"type":"error"' in body
        now = await metrics(http)
    assert now("chat_grpc_requests_total", method=METHOD, code="UNAVAILABLE") == 1
    assert now("chat_grpc_answers_total", outcome="failed") == 1


async def test_a_browser_that_leaves(chat_service: Service, model: Upstream) -> None:
    async def stall(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.text("half")
        await exchange.gone.wait()

    model.answer = stall
    async with behind_envoy(chat_service) as http:
        async with http.post(CHAT, json={"message": "How?"}) as response:
            await response.content.readline()
            assert (await metrics(http))("chat_grpc_streams_open") == 1
        response.close()
        await (await model.next_chat()).gone.wait()
        async with asyncio.timeout(10):
            while not (now := await metrics(http))("chat_grpc_messages_total", status="cancelled"):
                await asyncio.sleep(0.02)
    assert now("chat_grpc_requests_total", method=METHOD, code="CANCELLED") == 1
    assert now("chat_grpc_streams_open") == 0


async def test_grpc_and_http_tell_the_same(chat_service: Service) -> None:
    async with behind_envoy(chat_service) as http:
        await post(http)
        by_http = await metrics(http)
    by_grpc = await scrape(chat_service.channel)
    for name in (
        "chat_grpc_messages_total",
        "chat_grpc_tokens_total",
        "chat_grpc_storage_operation_duration_seconds_count",
    ):
        assert by_http(name) == by_grpc(name) > 0


async def test_other_methods_are_refused(chat_service: Service) -> None:
    async with behind_envoy(chat_service) as http, http.post("/metrics") as response:
        assert response.status == 405
        assert response.headers["allow"] == "GET"


async def test_a_rest_callers_trace_reaches_memvid_and_the_model(
    chat_service: Service, model: Upstream, memory: Memvid
) -> None:
    async with behind_envoy(chat_service) as http:
        await post(http, traceparent=TRACEPARENT, tracestate="vendor=value")
    for headers in (memory.metadata[-1], model.chats[-1].headers):
        assert headers["traceparent"].split("-")[1] == TRACE_ID
        assert headers["tracestate"] == "vendor=value"


async def test_the_route_can_be_taken_from_the_edge(chat_service: Service) -> None:
    async with behind_envoy(chat_service, http_metrics=False) as http:
        async with http.get("/metrics") as response:
            assert response.status == 404
        async with http.get("/health") as response:
            assert response.status == 200
    assert (await scrape(chat_service.channel))("chat_grpc_build_info") == 1


async def test_a_caller_of_the_edge_can_not_ask_by_grpc(chat_service: Service) -> None:
    async with behind_envoy(chat_service) as http:
        address = str(http._base_url).removeprefix("http://").rstrip("/")
        async with grpc.aio.insecure_channel(address) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await scrape(channel)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
