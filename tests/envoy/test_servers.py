"""Envoy in front of three server processes: who is asked, and who is not any more."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest

from chat_grpc._gen.chat.v1 import chat_pb2, chat_pb2_grpc
from chat_grpc.client import ChatClient, ChatError
from chat_grpc.embedded import edge
from chat_grpc.settings import Settings
from tests.gateway.edges import running_edge
from tests.support.memvid import Memvid
from tests.support.metrics import scrape
from tests.support.process import Process, chat_grpc, free_port, serving
from tests.support.upstream import Exchange, Upstream, saying

READY = "chat.v1.ChatService"


@dataclass
class Server:
    """One server process, on a port and with a database of its own."""

    process: Process
    port: int

    @property
    def calls(self) -> int:
        """How many messages it was sent by clients of the edge."""
        lines = [json.loads(line) for line in self.process.output.splitlines() if line.startswith("{")]
        return sum(line["event"] == "call" and line["method"] == "gateway.v1.GatewayService/Chat" for line in lines)


@asynccontextmanager
async def server(folder: Path, model: Upstream, memory: Memvid, port: int) -> AsyncIterator[Server]:
    settings = {
        "CHAT_GRPC_PORT": str(port),
        "CHAT_DATABASE_URL": f"sqlite+aiosqlite:///{folder}/{port}.db",
        "CHAT_LLM_PROVIDER": "local",
        "CHAT_LLM_BASE_URL": model.url,
        "CHAT_MEMVID_GRPC_URL": memory.address,
        "CHAT_RATE_LIMIT": "off",
        "CHAT_ADDRESS_RATE_LIMIT": "off",
        "CHAT_REST_RATE_LIMIT": "off",
        "CHAT_CACHE_SECONDS": "0",
        "CHAT_LOG_FORMAT": "json",
    }
    async with chat_grpc("serve", folder=folder, **settings) as process:
        await serving(f"127.0.0.1:{port}", READY)
        yield Server(process, port)


@dataclass
class Several:
    """The edge, a client of it, and the servers behind it."""

    http: aiohttp.ClientSession
    address: str
    servers: list[Server]

    async def ask(self, message: str = "How?") -> int:
        """Send a message, and return the HTTP status."""
        async with self.http.post("/api/v1/chat", json={"message": message, "stream": False}) as answer:
            await answer.read()
            return answer.status

    async def ask_at_once(self, count: int) -> list[int]:
        """Send many messages at once, and return the statuses."""
        return await asyncio.gather(*(self.ask(f"Number {number}?") for number in range(count)))


@pytest.fixture
async def several(tmp_path: Path, model: Upstream, memory: Memvid) -> AsyncIterator[Several]:
    async with AsyncExitStack() as stack:
        starts = [server(tmp_path, model, memory, free_port()) for _ in range(3)]
        servers = [await stack.enter_async_context(start) for start in starts]
        upstreams = ", ".join(f"127.0.0.1:{server.port}" for server in servers)
        running = await stack.enter_async_context(running_edge(1, tmp_path, grpc_upstreams=upstreams))
        http = await stack.enter_async_context(
            aiohttp.ClientSession(
                running.url, timeout=aiohttp.ClientTimeout(60), connector=aiohttp.TCPConnector(limit=0)
            )
        )
        yield Several(http, f"127.0.0.1:{running.port}", servers)


@pytest.mark.e2e
async def test_calls_are_spread_and_a_dead_server_is_asked_no_more_until_it_is_back(
    several: Several, tmp_path: Path, model: Upstream, memory: Memvid
) -> None:
    # Envoy does not count what waits for a connection: each of its threads makes its own to each server first.
    assert await several.ask_at_once(60) == [200] * 60
    async with asyncio.timeout(30):
        while sum(server.calls for server in several.servers) < 60:
            await asyncio.sleep(0.02)
    before = [server.calls for server in several.servers]

    go_on = asyncio.Event()

    async def held(exchange: Exchange) -> None:
        await go_on.wait()
        await saying("at last")(exchange)

    model.answer = held
    known = len(model.chats)
    asked = asyncio.ensure_future(several.ask_at_once(60))
    async with asyncio.timeout(30):
        while len(model.chats) < known + 60:
            await asyncio.sleep(0.02)
    go_on.set()
    assert await asked == [200] * 60
    async with asyncio.timeout(30):
        while sum(server.calls for server in several.servers) < sum(before) + 60:
            await asyncio.sleep(0.02)
    spread = [server.calls - count for server, count in zip(several.servers, before, strict=True)]
    assert min(spread) >= 18, spread  # the one of two with fewer open calls is chosen
    model.answer = saying("at once")

    dead = several.servers[0]
    dead.process.send(signal.SIGKILL)
    await dead.process.wait()
    for _ in range(4):  # the first ones come before any health check has failed
        assert await several.ask_at_once(20) == [200] * 20
        await asyncio.sleep(0.5)

    async with server(tmp_path, model, memory, dead.port) as again, asyncio.timeout(60):
        while not again.calls:
            assert await several.ask_at_once(6) == [200] * 6
            await asyncio.sleep(0.1)


@pytest.mark.e2e
async def test_a_server_that_drains_is_asked_no_more_and_finishes_what_it_began(
    several: Several, model: Upstream
) -> None:
    go_on = asyncio.Event()

    async def held(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.text("half ")
        await go_on.wait()
        await exchange.text("whole")
        await exchange.finish()

    model.answer = held
    begun = [asyncio.ensure_future(several.ask(f"Held {number}?")) for number in range(12)]
    async with asyncio.timeout(30):
        while len(model.chats) < len(begun):
            await asyncio.sleep(0.02)
    model.answer = saying("at once")
    draining = several.servers[1]
    draining.process.send(signal.SIGTERM)
    await draining.process.printed('"draining"')
    async with asyncio.timeout(30):
        # Until the next health check it may be asked, and refuses.
        while await several.ask_at_once(10) != [200] * 10:
            await asyncio.sleep(0.1)
    await asyncio.sleep(1.5)
    before = draining.calls
    assert await several.ask_at_once(40) == [200] * 40
    assert draining.calls == before
    go_on.set()
    assert await asyncio.gather(*begun) == [200] * len(begun)
    assert await draining.process.wait() == 0
    async with asyncio.timeout(10):  # what it wrote last may still be in the pipe
        while draining.calls == before:
            await asyncio.sleep(0.05)


@pytest.mark.e2e
async def test_an_answer_that_began_is_not_asked_for_again(several: Several, model: Upstream) -> None:
    async def silent(exchange: Exchange) -> None:
        await exchange.gone.wait()

    model.answer = silent
    async with grpc.aio.insecure_channel(several.address) as channel, ChatClient(several.address) as client:
        call: Any = chat_pb2_grpc.ChatServiceStub(channel).Chat(chat_pb2.ChatRequest(message="Raw?"))
        assert (await call.read()).HasField("started")
        library = asyncio.ensure_future(client.answer("Library?"))
        rest = asyncio.ensure_future(several.ask("REST?"))
        async with asyncio.timeout(30):
            while len(model.chats) < 3:
                await asyncio.sleep(0.02)
        for one in several.servers:
            one.process.send(signal.SIGKILL)
        # Envoy can put no status behind what it has passed on; so it resets the stream, which gRPC calls INTERNAL.
        assert await call.code() is grpc.StatusCode.INTERNAL
        with pytest.raises(ChatError) as lost:
            await library
        assert (lost.value.code, lost.value.reason) == (grpc.StatusCode.UNAVAILABLE, "CONNECTION_LOST")
        assert await rest == 503  # nothing of it had been passed on
    assert len(model.chats) == 3


@pytest.mark.e2e
async def test_health_checks_are_neither_logged_nor_counted(several: Several) -> None:
    checked = several.servers[0]
    before = checked.process.output
    await asyncio.sleep(3)  # as many checks
    assert checked.process.output == before
    async with grpc.aio.insecure_channel(f"127.0.0.1:{checked.port}") as channel:
        methods = {dict(labels).get("method", "") for name, labels in (await scrape(channel)).series()}
    assert [method for method in methods if "ealth" in method] == []


def servers_of(**settings: Any) -> list[tuple[str, int]]:
    """Return the servers of a rendered configuration."""
    [cluster] = edge.render(Settings(**settings))["static_resources"]["clusters"]
    [group] = cluster["load_assignment"]["endpoints"]
    sockets = [one["endpoint"]["address"]["socket_address"] for one in group["lb_endpoints"]]
    return [(socket["address"], socket["port_value"]) for socket in sockets]


def test_the_servers_are_those_of_the_setting() -> None:
    assert servers_of(grpc_upstreams="10.0.0.11:50052, chat.internal:1,[::1]:2", grpc_host="10.0.0.9") == [
        ("10.0.0.11", 50052),
        ("chat.internal", 1),
        ("::1", 2),
    ]
    assert servers_of(grpc_port=9) == [("127.0.0.1", 9)]


@pytest.mark.parametrize(
    ("upstreams", "sni"),
    [
        ("a.internal:1,a.internal:2", {"sni": "a.internal"}),
        ("a.internal:1,b.internal:1", {"auto_host_sni": True}),
        ("10.0.0.1:1,10.0.0.2:1", {}),
    ],
)
def test_each_server_shows_the_name_that_it_is_reached_by(upstreams: str, sni: dict[str, Any]) -> None:
    config = edge.render(Settings(grpc_upstreams=upstreams, tls_ca_file="authority.pem"))
    [cluster] = config["static_resources"]["clusters"]
    tls = cluster["transport_socket"]["typed_config"]
    assert {name: value for name, value in tls.items() if "sni" in name} == sni
    names = tls["common_tls_context"]["validation_context"]["match_typed_subject_alt_names"]
    assert {name["matcher"]["exact"] for name in names} == {pair.rpartition(":")[0] for pair in upstreams.split(",")}


def test_calls_to_workers_are_spread_over_more_connections() -> None:
    def streams(workers: int) -> int | None:
        [cluster] = edge.render(Settings(workers=workers))["static_resources"]["clusters"]
        [options] = cluster["typed_extension_protocol_options"].values()
        found: int | None = options["explicit_http_config"]["http2_protocol_options"].get("max_concurrent_streams")
        return found

    assert streams(1) is None
    assert streams(2) == edge.STREAMS_PER_CONNECTION
