"""What the log says of calls: one line each, and nothing of what was said."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from chat_grpc._gen.chat.v1 import chat_pb2, chat_pb2_grpc
from chat_grpc._gen.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from chat_grpc.telemetry.logs import JsonFormatter
from tests.support.fixtures import StartService
from tests.support.metrics import scrape
from tests.support.process import chat_grpc, free_port, serving
from tests.support.service import Service
from tests.support.upstream import Exchange, Upstream, saying

QUESTION = "Where is the treasure buried?"
ANSWER = "Under the old oak."
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"


class Log:
    """The lines of a log, as they are written."""

    def __init__(self) -> None:
        self.stream = io.StringIO()

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]

    @property
    def calls(self) -> list[dict[str, Any]]:
        """The lines that tell of finished calls."""
        return [line for line in self.lines if line["event"] == "call"]

    async def call(self) -> dict[str, Any]:
        """Wait for the only line of a call; a client hears of its end a moment before the log does."""
        async with asyncio.timeout(5):
            while not self.calls:
                await asyncio.sleep(0.01)
        [call] = self.calls
        return call


@pytest.fixture
def log() -> Iterator[Log]:
    """Everything that the program logs, from DEBUG on."""
    log = Log()
    handler = logging.StreamHandler(log.stream)
    handler.setFormatter(JsonFormatter())
    loggers = [logging.getLogger(name) for name in ("chat_grpc", "gateway")]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
    yield log
    for logger in loggers:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)


async def test_a_call_leaves_one_line(chat_service: Service, model: Upstream, log: Log) -> None:
    events = await chat_service.ask(user_id="anna", request_id="my-request")
    call = await log.call()
    completed = events[-1].completed
    assert 0 < call.pop("seconds") < 10
    assert call.pop("time").endswith("+00:00")
    assert call == {
        "level": "INFO",
        "logger": "chat_grpc.rpc.observer",
        "event": "call",
        "request_id": "my-request",
        "method": "chat.v1.ChatService/Chat",
        "code": "OK",
        "user_id": "anna",
        "session_id": completed.session_id,
        "message_id": completed.message_id,
        "model": "local/test-model",
        "prompt_tokens": 7,
        "completion_tokens": 3,
        "cost_usd": 0.0,
        "cached": False,
    }


async def test_a_call_that_failed_says_why(chat_service: Service, model: Upstream, log: Log) -> None:
    model.answer = lambda exchange: exchange.refuse(401)
    failure = await chat_service.fail(user_id="anna")
    call = await log.call()
    assert call["code"] == failure.code.name
    assert call["reason"] == failure.reason
    assert call["message_id"] == failure.events[0].started.message_id


async def test_a_call_that_was_refused_names_no_message(chat_service: Service, log: Log) -> None:
    await chat_service.fail("", user_id="anna")
    call = await log.call()
    assert (call["code"], call["reason"]) == ("INVALID_ARGUMENT", "INVALID_REQUEST")
    assert "message_id" not in call


async def test_a_client_that_left(chat_service: Service, model: Upstream, log: Log) -> None:
    async def stall(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.text("half")
        await exchange.gone.wait()

    model.answer = stall
    call = chat_service.chat.Chat(chat_pb2.ChatRequest(message="How?", user_id="anna"))
    while not (await call.read()).HasField("delta"):
        pass
    call.cancel()
    line = await log.call()
    assert line["code"] == "CANCELLED"
    assert line["user_id"] == "anna"
    assert line["message_id"]


async def test_what_machines_ask_every_few_seconds_is_not_told(chat_service: Service, log: Log) -> None:
    await scrape(chat_service.channel)
    await gateway_pb2_grpc.GatewayServiceStub(chat_service.channel).GetHealth(gateway_pb2.GetHealthRequest())
    assert {line["level"] for line in log.calls} == {"DEBUG"}


async def test_lines_of_a_call_carry_its_trace(chat_service: Service, model: Upstream, log: Log) -> None:
    model.answer = lambda exchange: exchange.refuse(500)
    with pytest.raises(grpc.aio.AioRpcError):
        async for _ in chat_service.chat.Chat(
            chat_pb2.ChatRequest(message="How?"), metadata=(("traceparent", TRACEPARENT),)
        ):
            pass
    call = await log.call()
    assert call["trace_id"] == TRACE_ID
    assert call["span_id"] == "b7ad6b7169203331"
    failed = [line for line in log.lines if line["event"] == "a model failed"]
    assert failed
    assert {line["trace_id"] for line in failed} == {TRACE_ID}


async def test_texts_are_told_only_where_asked_for(start: StartService, model: Upstream, log: Log) -> None:
    model.answer = saying(ANSWER)
    async with start() as service:
        await service.ask(QUESTION)
        await log.call()
    assert QUESTION not in log.stream.getvalue()
    assert ANSWER not in log.stream.getvalue()
    log.stream.truncate(0)
    log.stream.seek(0)
    async with start(CHAT_LOG_CONTENT="true", CHAT_CACHE_SECONDS="0") as service:
        await service.ask(QUESTION)
        call = await log.call()
    assert (call["message"], call["answer"]) == (QUESTION, ANSWER)


@pytest.mark.parametrize("form", ["json", "text"])
async def test_a_process_that_says_all_it_can_says_nothing_of_that(tmp_path: Path, model: Upstream, form: str) -> None:
    model.answer = saying(ANSWER)
    port = free_port()
    async with chat_grpc(
        "serve",
        folder=tmp_path,
        CHAT_GRPC_PORT=str(port),
        CHAT_LLM_PROVIDER="local",
        CHAT_LLM_BASE_URL=model.url,
        CHAT_LLM_MODEL="test-model",
        CHAT_LLM_API_KEY="sk-SECRET-KEY",
        CHAT_MEMVID_GRPC_URL=f"127.0.0.1:{free_port()}",
        CHAT_LOG_LEVEL="DEBUG",
        CHAT_LOG_FORMAT=form,
    ) as process:
        await serving(f"127.0.0.1:{port}")
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = chat_pb2_grpc.ChatServiceStub(channel)
            async for _ in stub.Chat(chat_pb2.ChatRequest(message=QUESTION, user_id="anna")):
                pass
            model.answer = lambda exchange: exchange.refuse(401)
            with pytest.raises(grpc.aio.AioRpcError):
                async for _ in stub.Chat(chat_pb2.ChatRequest(message=f"{QUESTION} Where?", user_id="anna")):
                    pass
        process.inner.terminate()
        await process.wait()
    assert process.output.count("chat.v1.ChatService/Chat") == 2
    assert "treasure" not in process.output
    assert "oak" not in process.output
    assert "SECRET" not in process.output
    if form == "json":
        said = [json.loads(line) for line in process.output.splitlines() if line.startswith("{")]
        libraries = [line for line in said if not line["logger"].startswith(("chat_grpc", "gateway"))]
        assert said
        assert [line for line in libraries if line["level"] in ("DEBUG", "INFO")] == []
