"""What a server counts, read over gRPC: the values agree with what happened."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import grpc
import pytest

from chat_grpc._gen.chat.v1 import chat_pb2
from chat_grpc.telemetry.tokens import GAP_BOUNDS, TokenGaps
from tests.support.fixtures import StartService
from tests.support.memvid import Memvid
from tests.support.metrics import Scrape, scrape, scrape_until
from tests.support.process import free_port
from tests.support.service import Service
from tests.support.upstream import Exchange, Upstream, saying

CHAT = "chat.v1.ChatService/Chat"
Options = chat_pb2.ChatOptions


class Held:
    """An answer that says "half", and the rest once it is let go on."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()

    async def __call__(self, exchange: Exchange) -> None:
        await exchange.start()
        await exchange.text("half ")
        await self.go_on.wait()
        await exchange.text("whole")
        await exchange.finish()


async def paced(exchange: Exchange) -> None:
    await exchange.start()
    for piece in ("one ", "two ", "three ", "four"):
        await exchange.text(piece)
        await asyncio.sleep(0.03)  # so that no two arrive in one read
    await exchange.finish()


def chat(service: Service, message: str = "How?", **fields: Any) -> Any:
    return service.chat.Chat(chat_pb2.ChatRequest(message=message, **fields))


async def until_text(call: Any) -> None:
    """Read a call's events up to its first text."""
    while not (await call.read()).HasField("delta"):
        pass


async def finish(call: Any) -> None:
    """Read a call's events to their end."""
    while await call.read() is not grpc.aio.EOF:
        pass


# --- answers -----------------------------------------------------------------


async def test_an_answer_is_counted_once_everywhere(chat_service: Service, model: Upstream) -> None:
    model.answer = paced
    await chat_service.ask(user_id="anna")
    now = await scrape(chat_service.channel)
    assert now("chat_grpc_requests_total", method=CHAT, code="OK") == 1
    assert now("chat_grpc_request_duration_seconds_count", method=CHAT) == 1
    assert now("chat_grpc_request_duration_seconds_sum", method=CHAT) > 0.09
    assert now("chat_grpc_messages_total", status="completed") == 1
    assert now("chat_grpc_answers_total", outcome="completed", provider="local") == 1
    assert now("chat_grpc_answers_total") == 1
    assert now("chat_grpc_time_to_first_token_seconds_count", provider="local") == 1
    assert now("chat_grpc_inter_token_seconds_count") == 3
    assert now("chat_grpc_inter_token_seconds_sum") > 0.06
    assert now("chat_grpc_inter_token_seconds_bucket", le="0.01") == 0
    assert now("chat_grpc_tokens_total", kind="prompt", provider="local") == 7
    assert now("chat_grpc_tokens_total", kind="completion", provider="local") == 3
    assert now("chat_grpc_cache_lookups_total", result="miss") == 1
    assert now("chat_grpc_memvid_request_duration_seconds_count", operation="ask", outcome="ok") == 1
    assert now("chat_grpc_storage_operation_duration_seconds_count", operation="add", outcome="ok") == 1
    assert now("chat_grpc_storage_operation_duration_seconds_count", operation="settle", outcome="ok") == 1
    assert now("chat_grpc_sessions_active") == 1
    assert now("chat_grpc_streams_open") == 0


@pytest.mark.skipif(find_spec("litellm") is None, reason="litellm's table holds the prices")
async def test_costs_add_up(start: StartService) -> None:
    async with start(CHAT_LLM_PROVIDER="openai", CHAT_LLM_MODEL="gpt-4o-mini", CHAT_CACHE_SECONDS="0") as service:
        costs = [(await service.ask())[-1].completed.usage.cost_usd for _ in range(3)]
        now = await scrape(service.channel)
    assert costs[0] > 0
    assert now("chat_grpc_cost_usd_total", provider="openai") == pytest.approx(sum(costs))


async def test_an_answer_from_the_cache_costs_nothing(chat_service: Service) -> None:
    await chat_service.ask(user_id="anna")
    await chat_service.ask(user_id="bert")
    now = await scrape(chat_service.channel)
    assert now("chat_grpc_cache_lookups_total", result="hit") == 1
    assert now("chat_grpc_cache_lookups_total", result="miss") == 1
    assert now("chat_grpc_messages_total", status="completed") == 2
    assert now("chat_grpc_answers_total") == 1
    assert now("chat_grpc_tokens_total") == 10


async def test_followers_share_one_answer(chat_service: Service, model: Upstream) -> None:
    held = model.answer = Held()
    pilot = chat(chat_service, user_id="anna")
    await until_text(pilot)
    follower = chat(chat_service, user_id="bert")
    await until_text(follower)
    assert (await scrape(chat_service.channel))("chat_grpc_streams_open") == 2
    held.go_on.set()
    await finish(pilot)
    await finish(follower)
    now = await scrape(chat_service.channel)
    assert now("chat_grpc_single_flight_followers_total") == 1
    assert now("chat_grpc_answers_total") == 1
    assert now("chat_grpc_messages_total", status="completed") == 2
    assert now("chat_grpc_streams_open") == 0


async def test_a_client_that_leaves(chat_service: Service, model: Upstream) -> None:
    model.answer = Held()
    call = chat(chat_service)
    await until_text(call)
    assert (await scrape(chat_service.channel))("chat_grpc_streams_open") == 1
    call.cancel()
    now = await scrape_until(chat_service.channel, lambda now: now("chat_grpc_messages_total", status="cancelled") == 1)
    assert now("chat_grpc_requests_total", method=CHAT, code="CANCELLED") == 1
    assert now("chat_grpc_answers_total", outcome="cancelled", provider="local") == 1
    assert now("chat_grpc_answers_total") == 1
    assert now("chat_grpc_tokens_total", kind="completion", provider="local") > 0
    assert now("chat_grpc_streams_open") == 0


async def test_a_model_that_breaks_off(chat_service: Service, model: Upstream) -> None:
    async def cut(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.text("half")
        await asyncio.sleep(0.05)
        exchange.close()

    model.answer = cut
    await chat_service.fail()
    now = await scrape(chat_service.channel)
    assert now("chat_grpc_requests_total", method=CHAT, code="UNAVAILABLE") == 1
    assert now("chat_grpc_answers_total", outcome="failed", provider="local") == 1
    assert now("chat_grpc_answers_total") == 1
    assert now("chat_grpc_messages_total", status="partial") == 1
    assert now("chat_grpc_tokens_total", kind="completion", provider="local") > 0


async def test_a_fallback(start: StartService, model: Upstream) -> None:
    model.answer = lambda exchange: exchange.refuse(500)
    async with start(CHAT_LLM_FALLBACK_EXTRACTIVE="true", CHAT_LLM_RETRIES="0") as service:
        await service.ask()
        now = await scrape(service.channel)
    assert now("chat_grpc_fallbacks_total", from_provider="local") == 1
    assert now("chat_grpc_fallbacks_total") == 1
    assert now("chat_grpc_answers_total", outcome="completed", provider="extractive") == 1
    assert now("chat_grpc_time_to_first_token_seconds_count", provider="extractive") == 1
    assert now("chat_grpc_time_to_first_token_seconds_count", provider="local") == 0


async def test_the_breaker_opens_half_opens_and_closes(start: StartService, model: Upstream) -> None:
    def state(now: Scrape) -> str:
        states = ("closed", "open", "half_open")
        assert now("chat_grpc_breaker_state", provider="local") == 1
        return next(name for name in states if now("chat_grpc_breaker_state", provider="local", state=name) == 1)

    async with start(CHAT_LLM_RETRIES="0", CHAT_LLM_BREAKER_FAILURES="1", CHAT_LLM_BREAKER_SECONDS="0.5") as service:
        assert state(await scrape(service.channel)) == "closed"
        model.answer = lambda exchange: exchange.refuse(500)
        await service.fail()
        assert state(await scrape(service.channel)) == "open"
        await scrape_until(service.channel, lambda now: state(now) == "half_open")
        model.answer = saying("Well again.")
        await service.ask()
        now = await scrape(service.channel)
        assert state(now) == "closed"
        assert now("chat_grpc_answers_total", outcome="failed", provider="local") == 1


# --- the other parts ---------------------------------------------------------


async def test_memvid_is_down(start: StartService) -> None:
    async with start(CHAT_MEMVID_GRPC_URL=f"127.0.0.1:{free_port()}") as service:
        await service.ask()
        now = await scrape(service.channel)
    assert now("chat_grpc_memvid_request_duration_seconds_count", operation="ask", outcome="unavailable") == 1
    assert not now.has("chat_grpc_memvid_request_duration_seconds_count", operation="ask", outcome="ok")
    assert now("chat_grpc_messages_total", status="completed") == 1


async def test_memvid_is_late(start: StartService, memory: Memvid) -> None:
    memory.hold = asyncio.Event()
    async with start(CHAT_MEMVID_TIMEOUT="0.1") as service:
        await service.ask()
        now = await scrape(service.channel)
    assert now("chat_grpc_memvid_request_duration_seconds_count", operation="ask", outcome="timeout") == 1
    assert now("chat_grpc_memvid_request_duration_seconds_sum", operation="ask", outcome="timeout") > 0.05


async def test_the_storage_fails(chat_service: Service, tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "chat.db", isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")  # and holds it for longer than the server waits
        await chat_service.fail()
    finally:
        other.close()
    now = await scrape(chat_service.channel)
    assert now("chat_grpc_storage_operation_duration_seconds_count", operation="add", outcome="failed") == 1
    assert now("chat_grpc_requests_total", method=CHAT, code="UNAVAILABLE") == 1
    assert now("chat_grpc_answers_total") == 0


@pytest.mark.parametrize(
    ("limit", "setting", "value"),
    [("user", "CHAT_RATE_LIMIT", "1/minute"), ("address", "CHAT_ADDRESS_RATE_LIMIT", "1/minute")],
)
async def test_a_rate_that_is_reached(start: StartService, limit: str, setting: str, value: str) -> None:
    async with start(**{setting: value}) as service:
        await service.ask(user_id="anna")
        await service.fail(user_id="anna")
        await service.fail(user_id="anna")
        now = await scrape(service.channel)
    assert now("chat_grpc_limit_refusals_total", limit=limit) == 2
    assert now("chat_grpc_limit_refusals_total") == 2
    assert now("chat_grpc_requests_total", method=CHAT, code="RESOURCE_EXHAUSTED") == 2


@pytest.mark.parametrize(
    ("limit", "settings"),
    [
        ("streams_user", {"CHAT_MAX_STREAMS_PER_USER": "1"}),
        ("streams_total", {"CHAT_MAX_STREAMS": "1", "CHAT_QUEUE_LENGTH": "0"}),
    ],
)
async def test_streams_that_are_too_many(
    start: StartService, model: Upstream, limit: str, settings: dict[str, str]
) -> None:
    held = model.answer = Held()
    async with start(**settings) as service:
        call = chat(service, user_id="anna")
        await until_text(call)
        await service.fail("Why?", user_id="anna")
        now = await scrape(service.channel)
        held.go_on.set()
        await finish(call)
    assert now("chat_grpc_limit_refusals_total", limit=limit) == 1
    assert now("chat_grpc_limit_refusals_total") == 1


async def test_a_caller_who_waits_for_a_place(start: StartService, model: Upstream) -> None:
    held = model.answer = Held()
    async with start(CHAT_MAX_STREAMS="1") as service:
        call = chat(service)
        await until_text(call)
        waiting = asyncio.ensure_future(service.ask("Why?"))
        await scrape_until(service.channel, lambda now: now("chat_grpc_streams_waiting") == 1)
        held.go_on.set()
        await finish(call)
        await waiting
        assert (await scrape(service.channel))("chat_grpc_streams_waiting") == 0


async def test_other_methods_and_errors(chat_service: Service) -> None:
    await chat_service.fail("")
    await chat_service.messages(user_id="anna")
    await scrape(chat_service.channel)
    now = await scrape(chat_service.channel)
    assert now("chat_grpc_requests_total", method=CHAT, code="INVALID_ARGUMENT") == 1
    assert now("chat_grpc_requests_total", method="chat.v1.HistoryService/ListMessages", code="OK") == 1
    assert now("chat_grpc_requests_total", method="gateway.v1.MetricsService/GetMetrics", code="OK") == 1
    assert now("chat_grpc_messages_total") == 0


async def test_a_deadline_that_passed(chat_service: Service, model: Upstream) -> None:
    model.answer = Held()
    with pytest.raises(grpc.aio.AioRpcError):
        async for _ in chat_service.chat.Chat(chat_pb2.ChatRequest(message="How?"), timeout=0.3):
            pass
    now = await scrape_until(
        chat_service.channel, lambda now: now.has("chat_grpc_requests_total", method=CHAT, code="DEADLINE_EXCEEDED")
    )
    assert now("chat_grpc_requests_total", method=CHAT) == 1


# --- names, labels, servers --------------------------------------------------

UNITS = ("_seconds", "_bytes", "_usd")


async def test_names_and_labels_follow_the_conventions(chat_service: Service) -> None:
    await chat_service.ask()
    families = (await scrape(chat_service.channel)).families
    assert len(families) > 15
    for family in families:
        assert family.documentation, family.name
        assert re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", family.name), family.name
        assert family.name.startswith(("chat_grpc_", "process_", "python_")), family.name
        assert family.type in ("counter", "gauge", "histogram"), family.name
        assert not re.search(r"_(ms|milliseconds|micros|minutes|kb|mb|percent)(_|$)", family.name), family.name
        if family.type == "histogram":
            assert family.name.endswith(UNITS), family.name
        for sample in family.samples:
            if family.type == "counter":
                assert sample.name == f"{family.name}_total"
                assert sample.value >= 0
            for label in sample.labels:
                assert label == "le" or re.fullmatch(r"[a-z][a-z_]*", label), (family.name, label)
    labels = {label for family in families for sample in family.samples for label in sample.labels}
    assert not labels & {"user", "user_id", "session", "session_id", "request_id", "message_id", "model", "address"}


async def test_the_whole_is_known_before_anything_happens(chat_service: Service) -> None:
    now = await scrape(chat_service.channel)
    for name in (
        "chat_grpc_messages_total",
        "chat_grpc_answers_total",
        "chat_grpc_tokens_total",
        "chat_grpc_cost_usd_total",
        "chat_grpc_cache_lookups_total",
        "chat_grpc_single_flight_followers_total",
        "chat_grpc_fallbacks_total",
        "chat_grpc_limit_refusals_total",
        "chat_grpc_time_to_first_token_seconds_count",
        "chat_grpc_inter_token_seconds_count",
        "chat_grpc_streams_open",
        "chat_grpc_streams_waiting",
        "chat_grpc_sessions_active",
    ):
        assert now(name) == 0, name
    assert now("chat_grpc_build_info") == 1
    assert now("process_resident_memory_bytes") > 1_000_000
    assert now("process_cpu_seconds_total") > 0
    assert now.has("python_gc_collections_total", generation="2")


async def test_many_callers_add_no_series(start: StartService) -> None:
    async with start(CHAT_LLM_MODELS="large", CHAT_ADDRESS_RATE_LIMIT="off") as service:
        await service.ask(user_id="first-user")
        await service.fail("")
        await scrape(service.channel)  # which is counted too
        before = (await scrape(service.channel)).series()
        unknown: Any = service.channel.unary_unary  # without serializers it takes bytes
        for number in range(30):
            await service.ask(
                f"Question {number}?",
                user_id=f"user-{number}",
                request_id=f"request-{number}",
                options=Options(model="large"),
            )
            await service.fail("Why?", options=Options(model=f"unknown-{number}"))
            with pytest.raises(grpc.aio.AioRpcError):
                await unknown(f"/chat.v1.ChatService/Nosuch{number}")(b"")
        after = await scrape(service.channel)
    assert after.series() == before
    assert after("chat_grpc_sessions_active") == 31
    assert after("chat_grpc_messages_total", status="completed") == 31


async def test_servers_in_one_process_share_no_counts(start: StartService, tmp_path: Path) -> None:
    other_file = f"sqlite+aiosqlite:///{tmp_path}/other.db"
    async with start() as one, start(CHAT_DATABASE_URL=other_file) as other:
        await one.ask()
        assert (await scrape(one.channel))("chat_grpc_messages_total") == 1
        assert (await scrape(other.channel))("chat_grpc_messages_total") == 0


def test_gaps_fall_into_the_bucket_whose_bound_they_do_not_pass() -> None:
    first, last = GAP_BOUNDS[0], GAP_BOUNDS[-1]
    for seconds, bucket in ((0.0, 0), (first, 0), (first * 1.01, 1), (last, -2), (last * 2, -1)):
        gaps = TokenGaps()
        gaps.note(0.0)
        gaps.note(seconds)
        assert gaps.counts()[bucket] == sum(gaps.counts()) == 1
        assert gaps.sum == seconds


def test_gaps_are_what_lies_between_pieces() -> None:
    gaps = TokenGaps()
    assert (sum(gaps.counts()), gaps.sum) == (0, 0.0)
    gaps.note(7.0)
    assert (sum(gaps.counts()), gaps.sum) == (0, 0.0)
    for moment in (7.5, 7.5, 37.5):
        gaps.note(moment)
    counts = gaps.counts()
    assert (counts[0], counts[GAP_BOUNDS.index(0.5)], counts[-1]) == (1, 1, 1)
    assert (sum(counts), gaps.sum) == (3, 30.5)
