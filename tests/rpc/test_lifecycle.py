"""Start, drain and end of the real server process."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chat_grpc._gen.chat.v1 import chat_pb2, chat_pb2_grpc
from chat_grpc.app import SERVICES
from tests.support.memvid import Memvid
from tests.support.process import Process, chat_grpc, free_port, serving
from tests.support.service import failure_of, text_of
from tests.support.upstream import Exchange, Upstream, saying

Check = health_pb2.HealthCheckRequest
Response = health_pb2.HealthCheckResponse


@asynccontextmanager
async def server(folder: Path, model: Upstream, memory: Memvid, **environ: str) -> AsyncIterator[tuple[Process, str]]:
    port = free_port()
    settings = {
        "CHAT_GRPC_PORT": str(port),
        "CHAT_LLM_PROVIDER": "local",
        "CHAT_LLM_BASE_URL": model.url,
        "CHAT_MEMVID_GRPC_URL": memory.address,
        **environ,
    }
    async with chat_grpc("serve", folder=folder, **settings) as process:
        await process.printed("serving")
        yield process, f"127.0.0.1:{port}"


@asynccontextmanager
async def stubs(address: str) -> AsyncIterator[tuple[chat_pb2_grpc.ChatServiceStub, health_pb2_grpc.HealthStub]]:
    async with grpc.aio.insecure_channel(address) as channel:
        yield chat_pb2_grpc.ChatServiceStub(channel), health_pb2_grpc.HealthStub(channel)


async def test_check_and_watch(tmp_path: Path, model: Upstream, memory: Memvid) -> None:
    async with server(tmp_path, model, memory) as (process, address), stubs(address) as (_, health):
        for name in ("", *SERVICES):
            assert (await health.Check(Check(service=name))).status == Response.SERVING
        failure = await failure_of(health.Check(Check(service="no.such.Service")))
        assert failure.code is grpc.StatusCode.NOT_FOUND
        watch = health.Watch(Check(service="chat.v1.ChatService"))
        assert (await watch.read()).status == Response.SERVING
        process.send(signal.SIGTERM)
        assert (await watch.read()).status == Response.NOT_SERVING
        assert await process.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_drain_lets_streams_finish_and_refuses_new_calls(
    tmp_path: Path, model: Upstream, memory: Memvid, number: signal.Signals
) -> None:
    go_on = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.text("before ")
        await go_on.wait()
        await exchange.text("after")
        await exchange.finish()

    model.answer = answer
    async with server(tmp_path, model, memory) as (process, address), stubs(address) as (chat, health):
        watch = health.Watch(Check(service=""))
        assert (await watch.read()).status == Response.SERVING
        events = []
        refused = None
        async for event in chat.Chat(chat_pb2.ChatRequest(message="How?")):
            events.append(event)
            if event.HasField("delta") and refused is None:
                process.send(number)
                assert (await watch.read()).status == Response.NOT_SERVING
                async with stubs(address) as (late, _):
                    refused = await failure_of(late.Chat(chat_pb2.ChatRequest(message="Too late?")))
                go_on.set()
        assert refused is not None
        assert refused.code is grpc.StatusCode.UNAVAILABLE
        assert refused.reason == "DRAINING"
        assert text_of(events) == "before after"
        assert events[-1].HasField("completed")
        assert await process.wait() == 0
        assert len(model.chats) == 1


async def test_stream_that_outlasts_the_drain_is_told_and_kept(tmp_path: Path, model: Upstream, memory: Memvid) -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.text("half an ans")
        await exchange.gone.wait()

    model.answer = answer
    async with (
        server(tmp_path, model, memory, CHAT_DRAIN_SECONDS="0.3") as (process, address),
        stubs(address) as (chat, _),
    ):
        failing = asyncio.ensure_future(failure_of(chat.Chat(chat_pb2.ChatRequest(message="How?"))))
        await model.next_chat()
        await asyncio.sleep(0.1)
        process.send(signal.SIGTERM)
        failure = await failing
        assert failure.code is grpc.StatusCode.UNAVAILABLE
        assert failure.reason == "DRAINING"
        assert "RetryInfo" in failure.details
        assert text_of(failure.events) == "half an ans"
        assert await process.wait() == 0
        await asyncio.wait_for(model.chats[0].gone.wait(), 5)
    assert rows(tmp_path) == [("partial", "half an ans", "DRAINING")]


async def test_second_signal_exits_at_once(tmp_path: Path, model: Upstream, memory: Memvid) -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.text("x")
        await exchange.gone.wait()

    model.answer = answer
    async with server(tmp_path, model, memory) as (process, address), stubs(address) as (chat, _):
        failing = asyncio.ensure_future(failure_of(chat.Chat(chat_pb2.ChatRequest(message="How?"))))
        await model.next_chat()
        process.send(signal.SIGTERM)
        await process.printed("draining")
        process.send(signal.SIGTERM)
        assert await process.wait(5) == 128 + signal.SIGTERM
        assert (await failing).code is grpc.StatusCode.UNAVAILABLE


async def test_death_in_the_middle_of_a_stream_is_told_after_the_restart(
    tmp_path: Path, model: Upstream, memory: Memvid
) -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.text("half")
        await exchange.gone.wait()

    model.answer = answer
    async with server(tmp_path, model, memory) as (process, address), stubs(address) as (chat, _):
        failing = asyncio.ensure_future(failure_of(chat.Chat(chat_pb2.ChatRequest(message="How?"))))
        await model.next_chat()
        process.send(signal.SIGKILL)
        assert (await failing).code is grpc.StatusCode.UNAVAILABLE
    assert [row[0] for row in rows(tmp_path)] == ["pending"]
    model.answer = saying("fine")
    async with server(tmp_path, model, memory) as (_, address):
        assert [(row[0], row[2]) for row in rows(tmp_path)] == [("interrupted", "SERVER_DIED")]
        async with stubs(address) as (chat, _):
            assert text_of([event async for event in chat.Chat(chat_pb2.ChatRequest(message="Again?"))]) == "fine"


async def test_readiness_follows_the_database(tmp_path: Path, model: Upstream, memory: Memvid) -> None:
    async with server(tmp_path, model, memory) as (_, address), stubs(address) as (_, health):
        watch = health.Watch(Check(service="chat.v1.ChatService"))
        assert (await watch.read()).status == Response.SERVING
        other = sqlite3.connect(tmp_path / "data" / "chat.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        assert (await asyncio.wait_for(watch.read(), 20)).status == Response.NOT_SERVING
        assert (await health.Check(Check(service=""))).status == Response.SERVING
        other.execute("ROLLBACK")
        other.close()
        assert (await asyncio.wait_for(watch.read(), 20)).status == Response.SERVING


async def test_port_taken(tmp_path: Path, model: Upstream, memory: Memvid) -> None:
    async with server(tmp_path, model, memory) as (_, address):
        port = address.rpartition(":")[2]
        async with chat_grpc("serve", folder=tmp_path, CHAT_GRPC_PORT=port) as second:
            assert await second.wait() == 1
            assert f"can't listen on 127.0.0.1:{port}" in second.output
            assert "CHAT_GRPC_PORT" in second.output
            assert "Traceback" not in second.output


@pytest.mark.parametrize(
    ("environ", "code", "text"),
    [
        ({"CHAT_GRPC_PORT": "many", "CHAT_LLM_TIMEOUT": "-1"}, 2, "2 settings are faulty"),
        ({"CHAT_DATABASE_URL": "sqlite:////proc/none/chat.db"}, 1, "check CHAT_DATABASE_URL"),
    ],
)
async def test_what_keeps_a_start_from_happening_is_one_message(
    tmp_path: Path, environ: dict[str, str], code: int, text: str
) -> None:
    async with chat_grpc("serve", folder=tmp_path, **environ) as process:
        assert await process.wait() == code
        assert text in process.output
        assert "Traceback" not in process.output


async def test_disk_that_fills_up(tmp_path: Path, model: Upstream, memory: Memvid) -> None:
    """A file size limit of the system stands in for a disk: a write beyond it fails as on a full one."""
    import resource

    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    port = free_port()
    settings = {"CHAT_GRPC_PORT": str(port), "CHAT_LLM_PROVIDER": "local", "CHAT_LLM_BASE_URL": model.url}
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, limit[1]))
    try:
        context = chat_grpc("serve", folder=tmp_path, CHAT_MEMVID_GRPC_URL=memory.address, **settings)
        process = await context.__aenter__()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    try:
        await serving(f"127.0.0.1:{port}")
        async with stubs(f"127.0.0.1:{port}") as (chat, _):
            completed = 0
            for _ in range(100):
                try:
                    async for event in chat.Chat(chat_pb2.ChatRequest(message="x" * 5000)):
                        completed += event.HasField("completed")
                except grpc.aio.AioRpcError:
                    break
            asked = len(model.chats)
            failure = await failure_of(chat.Chat(chat_pb2.ChatRequest(message="x" * 9000)))
            assert failure.code is grpc.StatusCode.UNAVAILABLE
            assert failure.reason == "STORAGE_UNAVAILABLE"
            assert "full" in failure.message
            assert len(model.chats) == asked
        assert 0 < completed < 100
        process.send(signal.SIGKILL)
        await process.wait()
        assert sum(row[0] == "completed" for row in rows(tmp_path)) == completed
    finally:
        await context.__aexit__(None, None, None)


def rows(folder: Path) -> list[tuple[str, str, str]]:
    with sqlite3.connect(folder / "data" / "chat.db") as raw:
        return raw.execute("SELECT status, answer, error_reason FROM messages").fetchall()
