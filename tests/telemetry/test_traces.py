"""Traces: the caller's is passed on, and spans go to a collector where one is configured."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from chat_grpc._gen.chat.v1 import chat_pb2
from tests.support.fixtures import StartService
from tests.support.memvid import Memvid
from tests.support.metrics import scrape
from tests.support.otlp import Collector, attributes_of, collector
from tests.support.process import ROOT, free_port
from tests.support.service import Service
from tests.support.upstream import Exchange, Upstream, saying

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
SPAN_ID = "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE_ID}-{SPAN_ID}-01"
SERVER = "chat.v1.ChatService/Chat"
ERROR = 2
"""STATUS_CODE_ERROR of a span."""


@pytest.fixture
async def collected() -> AsyncIterator[Collector]:
    """A collector of traces."""
    async with collector() as running:
        yield running


async def ask(service: Service, message: str = "How?", *, metadata: dict[str, str] | None = None) -> None:
    given = tuple((metadata or {}).items())
    async for _ in service.chat.Chat(chat_pb2.ChatRequest(message=message), metadata=given):
        pass


# --- without a collector -----------------------------------------------------


async def test_a_callers_trace_reaches_memvid_and_the_model(
    chat_service: Service, model: Upstream, memory: Memvid
) -> None:
    await ask(chat_service, metadata={"traceparent": TRACEPARENT, "tracestate": "vendor=value"})
    for headers in (memory.metadata[-1], model.chats[-1].headers):
        assert headers["traceparent"] == TRACEPARENT
        assert headers["tracestate"] == "vendor=value"


@pytest.mark.parametrize(
    "traceparent",
    [
        "",
        "rubbish",
        f"00-{TRACE_ID}-{SPAN_ID}",
        f"00-{TRACE_ID.upper()}-{SPAN_ID}-01",
        f"00-{'0' * 32}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        f"ff-{TRACE_ID}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{SPAN_ID}-01-more",
        f"01-{TRACE_ID}-{SPAN_ID}-01-{'x' * 300}",
    ],
)
async def test_what_is_no_trace_goes_nowhere(
    chat_service: Service, model: Upstream, memory: Memvid, traceparent: str
) -> None:
    await ask(chat_service, metadata={"traceparent": traceparent, "tracestate": "vendor=value"})
    for headers in (memory.metadata[-1], model.chats[-1].headers):
        assert "traceparent" not in headers
        assert "tracestate" not in headers


async def test_a_later_version_of_the_header_is_understood(chat_service: Service, memory: Memvid) -> None:
    await ask(chat_service, metadata={"traceparent": f"01-{TRACE_ID}-{SPAN_ID}-01-more"})
    assert memory.metadata[-1]["traceparent"] == TRACEPARENT


async def test_calls_at_the_same_time_keep_their_traces_apart(
    chat_service: Service, model: Upstream, memory: Memvid
) -> None:
    traces = [f"00-{number:032x}-{SPAN_ID}-01" for number in range(1, 9)]
    await asyncio.gather(
        *(ask(chat_service, f"Question {trace}?", metadata={"traceparent": trace}) for trace in traces)
    )
    for exchange in model.chats:
        assert exchange.headers["traceparent"] in exchange.messages[-1]["content"]
    for request, headers in zip(memory.requests, memory.metadata, strict=True):
        assert headers["traceparent"] in request.question


PROBE = """
import asyncio, sys, pathlib, tempfile
from tests.support.service import service
async def main():
    with tempfile.TemporaryDirectory() as folder:
        async with service(pathlib.Path(folder), CHAT_LLM_PROVIDER="extractive") as running:
            assert (await running.ask())[-1].completed.message_id
    loaded = [name for name in sys.modules if name.split(".")[0] in ("opentelemetry", "prometheus_client")]
    print("loaded:", loaded)
asyncio.run(main())
"""


def test_without_a_collector_nothing_is_loaded_for_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert "loaded: []" in done.stdout


# --- with one ----------------------------------------------------------------


async def test_spans_of_an_answer(start: StartService, model: Upstream, memory: Memvid, collected: Collector) -> None:
    async with start(CHAT_OTLP_ENDPOINT=collected.url) as service:
        await ask(service, "Where is it?", metadata={"traceparent": TRACEPARENT, "x-request-id": "my-request"})
        [message] = await service.messages(session_id=(await service.ask())[0].started.session_id)
        first = memory.metadata[0]
    spans = collected.spans
    assert set(spans) >= {SERVER, "memvid ask", "chat test-model", "storage add", "storage settle"}
    mine = {
        span.name: span
        for request in collected.requests
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
        if span.trace_id.hex() == TRACE_ID
    }
    server = mine[SERVER]
    assert server.parent_span_id.hex() == SPAN_ID
    assert server.kind == server.SPAN_KIND_SERVER
    for name in ("memvid ask", "chat test-model", "storage add", "storage settle"):
        assert mine[name].parent_span_id == server.span_id, name
        assert mine[name].start_time_unix_nano >= server.start_time_unix_nano, name
    # What they are sent names the span that the sending is.
    assert first["traceparent"] == f"00-{TRACE_ID}-{mine['memvid ask'].span_id.hex()}-01"
    assert model.chats[0].headers["traceparent"] == f"00-{TRACE_ID}-{mine['chat test-model'].span_id.hex()}-01"
    told = attributes_of(server)
    assert told["rpc.system"] == "grpc"
    assert (told["rpc.service"], told["rpc.method"]) == ("chat.v1.ChatService", "Chat")
    assert told["rpc.grpc.status_code"] == 0
    assert told["chat.request_id"] == "my-request"
    assert told["chat.message_id"].startswith("msg_")
    assert message.id != told["chat.message_id"]
    # One that came without a trace began one of its own.
    assert spans[SERVER].trace_id.hex() != TRACE_ID


async def test_a_models_span_follows_the_conventions(
    start: StartService, model: Upstream, collected: Collector
) -> None:
    async with start(CHAT_OTLP_ENDPOINT=collected.url) as service:
        await service.ask(options=chat_pb2.ChatOptions(max_tokens=50, temperature=0.5))
    span = collected.spans["chat test-model"]
    told = attributes_of(span)
    assert 0 < told.pop("gen_ai.response.time_to_first_chunk") < 10
    assert told == {
        "gen_ai.operation.name": "chat",
        "gen_ai.system": "local",
        "gen_ai.provider.name": "local",
        "gen_ai.request.model": "test-model",
        "gen_ai.request.max_tokens": 50,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.response.model": "test-model",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 3,
    }
    assert span.kind == span.SPAN_KIND_CLIENT
    assert span.status.code != ERROR


async def test_a_span_holds_the_whole_answer(start: StartService, model: Upstream, collected: Collector) -> None:
    async def slow(exchange: Exchange) -> None:
        await exchange.start()
        for _ in range(4):
            await exchange.text("word ")
            await asyncio.sleep(0.03)
        await exchange.finish()

    model.answer = slow
    async with start(CHAT_OTLP_ENDPOINT=collected.url) as service:
        await service.ask()
    span = collected.spans["chat test-model"]
    assert span.end_time_unix_nano - span.start_time_unix_nano > 0.09 * 1e9


@pytest.mark.parametrize("after_text", [False, True])
async def test_a_failure_is_told_by_its_reason(
    start: StartService, model: Upstream, collected: Collector, *, after_text: bool
) -> None:
    async def fail(exchange: Exchange) -> None:
        if not after_text:
            await exchange.refuse(401)
            return
        await exchange.start()
        await exchange.text("half")
        await asyncio.sleep(0.05)
        exchange.close()

    model.answer = fail
    async with start(CHAT_OTLP_ENDPOINT=collected.url) as service:
        failure = await service.fail()
    for name in ("chat test-model", SERVER):
        span = collected.spans[name]
        assert span.status.code == ERROR, name
        assert span.status.message == "", name
        assert attributes_of(span)["error.type"] == failure.reason, name


async def test_a_callers_mistake_does_not_fail_the_servers_span(start: StartService, collected: Collector) -> None:
    async with start(CHAT_OTLP_ENDPOINT=collected.url) as service:
        await service.fail("")
    span = collected.spans[SERVER]
    assert span.status.code != ERROR
    assert attributes_of(span)["rpc.grpc.status_code"] == 3


async def test_a_client_that_left_ends_the_spans(start: StartService, model: Upstream, collected: Collector) -> None:
    async def stall(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.text("half")
        await exchange.gone.wait()

    model.answer = stall
    async with start(CHAT_OTLP_ENDPOINT=collected.url) as service:
        call = service.chat.Chat(chat_pb2.ChatRequest(message="How?"))
        while not (await call.read()).HasField("delta"):
            pass
        call.cancel()
        await (await model.next_chat()).gone.wait()
    assert attributes_of(collected.spans["chat test-model"])["error.type"] == "CANCELLED"
    assert attributes_of(collected.spans[SERVER])["rpc.grpc.status_code"] == 1


async def test_spans_hold_no_texts_and_no_keys(start: StartService, model: Upstream, collected: Collector) -> None:
    model.answer = saying("Under the old oak.")
    async with start(CHAT_OTLP_ENDPOINT=collected.url, CHAT_LLM_API_KEY="sk-SECRET-KEY") as service:
        await service.ask("Where is the treasure?", user_id="anna")
    sent = b"".join(request.SerializeToString() for request in collected.requests)
    assert SERVER.encode() in sent
    for text in (b"treasure", b"oak", b"SECRET", b"anna"):
        assert text not in sent


async def test_who_was_not_sampled_is_not_sent(start: StartService, memory: Memvid, collected: Collector) -> None:
    async with start(CHAT_OTLP_ENDPOINT=collected.url) as service:
        await ask(service, metadata={"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-00"})
    assert SERVER not in collected.spans
    trace_id, flags = memory.metadata[-1]["traceparent"].split("-")[1::2]
    assert (trace_id, flags) == (TRACE_ID, "00")


async def test_health_checks_and_scrapes_leave_no_spans(start: StartService, collected: Collector) -> None:
    async with start(CHAT_OTLP_ENDPOINT=collected.url) as service:
        await scrape(service.channel)
        await service.ask()
    assert not [name for name in collected.spans if "Metrics" in name]


async def test_the_variables_of_opentelemetry_count(
    start: StartService, collected: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
    async with start(OTEL_EXPORTER_OTLP_ENDPOINT=collected.url) as service:
        await service.ask()
    assert collected.resource["service.name"] == "chat-grpc"
    assert collected.resource["deployment.environment"] == "test"
    collected.requests.clear()
    monkeypatch.setenv("OTEL_SERVICE_NAME", "answers")
    async with start(OTEL_EXPORTER_OTLP_ENDPOINT=collected.url, CHAT_CACHE_SECONDS="0") as service:
        await service.ask()
    assert collected.resource["service.name"] == "answers"


async def test_a_collector_that_is_down_holds_nothing_up(start: StartService) -> None:
    began: Any = None
    async with start(CHAT_OTLP_ENDPOINT=f"http://127.0.0.1:{free_port()}") as service:
        assert (await service.ask())[-1].completed.message_id
        began = time.monotonic()
    assert time.monotonic() - began < 15  # a hang-guard: it is 3 s and what the machine takes


async def test_metadata_that_is_no_text_does_no_harm(chat_service: Service) -> None:
    call = chat_service.chat.Chat(
        chat_pb2.ChatRequest(message="How?"), metadata=(("traceparent-bin", b"\x00\xff"), ("traceparent", "x"))
    )
    async for _ in call:
        pass
    assert await call.code() is grpc.StatusCode.OK
