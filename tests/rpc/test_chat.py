"""Chat through a real channel: what bad input gets, sessions, and what happens when a part is missing."""

from __future__ import annotations

import asyncio
import sqlite3
import uuid
from pathlib import Path
from typing import Any

import grpc
import pytest

from chat_grpc._gen.chat.v1 import chat_pb2, chat_pb2_grpc, history_pb2, types_pb2
from chat_grpc.errors import Unavailable
from tests.support.fixtures import StartService
from tests.support.memvid import PASSAGES, Memvid, memvid
from tests.support.service import Service, failure_of, text_of
from tests.support.upstream import Exchange, Upstream, saying

Message = history_pb2.Message
Options = chat_pb2.ChatOptions


async def test_events_in_order(chat_service: Service) -> None:
    events = await chat_service.ask("Where are messages kept?", request_id="my-request")
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[:2] == ["started", "retrieval"]
    assert set(kinds[2:-1]) == {"delta"}
    assert kinds[-1] == "completed"
    started, completed = events[0].started, events[-1].completed
    assert started.request_id == "my-request"
    assert uuid.UUID(started.session_id).version == 4
    assert (completed.message_id, completed.session_id) == (started.message_id, started.session_id)
    assert [passage.title for passage in events[1].retrieval.passages] == [title for title, _ in PASSAGES]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"message": ""}, ["message"]),
        ({"message": " \n\t "}, ["message"]),
        ({"message": "x" * 10_001}, ["message"]),
        ({"message": "nul \0 here"}, ["message"]),
        ({"user_id": "ab"}, ["user_id"]),
        ({"user_id": "x" * 101}, ["user_id"]),
        ({"user_id": "no spaces"}, ["user_id"]),
        ({"session_id": "not-a-uuid"}, ["session_id"]),
        ({"request_id": "two words"}, ["request_id"]),
        ({"request_id": "x" * 129}, ["request_id"]),
        ({"options": Options(model="gpt-999")}, ["options.model"]),
        ({"options": Options(max_tokens=0)}, ["options.max_tokens"]),
        ({"options": Options(max_tokens=8193)}, ["options.max_tokens"]),
        ({"options": Options(temperature=-0.1)}, ["options.temperature"]),
        ({"options": Options(temperature=2.1)}, ["options.temperature"]),
        ({"options": Options(temperature=float("nan"))}, ["options.temperature"]),
        ({"options": Options(top_k=0)}, ["options.top_k"]),
        ({"options": Options(top_k=21)}, ["options.top_k"]),
        ({"options": Options(filters={str(number): "x" for number in range(17)})}, ["options.filters"]),
        ({"options": Options(filters={"k": "x" * 201})}, ["options.filters"]),
        ({"message": "", "user_id": "a", "options": Options(top_k=0)}, ["message", "user_id", "options.top_k"]),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else None,
)
async def test_bad_input_is_named_and_nothing_is_done(
    chat_service: Service, model: Upstream, memory: Memvid, tmp_path: Path, fields: dict[str, Any], named: list[str]
) -> None:
    failure = await chat_service.fail(**{"message": "How?", **fields})
    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    assert failure.reason == "INVALID_REQUEST"
    assert failure.fields == named
    assert "RetryInfo" not in failure.details
    assert model.chats == []
    assert memory.requests == []
    assert count(tmp_path) == 0


@pytest.mark.parametrize("message", ["x" * 10_000, "🐎" * 10_000, "tab\tand\r\nlines"])
async def test_longest_and_oddest_messages_pass(start: StartService, model: Upstream, message: str) -> None:
    async with start(CHAT_LLM_CONTEXT="65536") as service:
        assert text_of(await service.ask(message)) == "Hello there."
    assert model.chats[0].messages[-1]["content"] == message


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        (b"\x0a\x02\xff\xfe", ["message"]),
        (b"\x0a\x02ok\x12\x01\xff", ["user_id"]),
        (b"\x0a\x02ok\x2a\x03\x1a\x01\xff", ["options.model"]),
        (b"\x0a\xff", [""]),
    ],
    ids=["message", "user_id", "nested", "cut"],
)
async def test_broken_utf8_is_named(chat_service: Service, model: Upstream, raw: bytes, named: list[str]) -> None:
    method: Any = chat_service.channel.unary_stream("/chat.v1.ChatService/Chat")
    failure = await failure_of(method(raw))
    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    assert failure.fields == named
    assert model.chats == []


async def test_request_beyond_the_size_limit(chat_service: Service, model: Upstream) -> None:
    failure = await chat_service.fail("x" * 2_000_000)
    assert failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert model.chats == []


async def test_session_remembers(chat_service: Service, model: Upstream) -> None:
    model.answer = saying("first answer")
    session = (await chat_service.ask("first question", user_id="anna"))[0].started.session_id
    await chat_service.ask("second question", user_id="anna", session_id=session.upper())
    turns = [(turn["role"], turn["content"]) for turn in model.chats[1].messages[1:]]
    assert turns == [("user", "first question"), ("assistant", "first answer"), ("user", "second question")]
    assert len(await chat_service.messages(session_id=session)) == 2


async def test_session_remembers_only_so_much(start: StartService, model: Upstream) -> None:
    async with start(CHAT_SESSION_TURNS="2") as service:
        session = (await service.ask("q0"))[0].started.session_id
        for number in range(1, 5):
            await service.ask(f"q{number}", session_id=session)
    asked = [turn["content"] for turn in model.chats[-1].messages if turn["role"] == "user"]
    assert asked == ["q2", "q3", "q4"]


async def test_failed_answers_are_not_remembered(chat_service: Service, model: Upstream) -> None:
    session = (await chat_service.ask("good"))[0].started.session_id
    model.answer = saying("cut of", reason=None)
    await chat_service.fail("bad", session_id=session)
    model.answer = saying("fine")
    await chat_service.ask("again", session_id=session)
    assert [turn["content"] for turn in model.chats[-1].messages[1:]] == ["good", "Hello there.", "again"]


async def test_unknown_session(chat_service: Service, model: Upstream, tmp_path: Path) -> None:
    failure = await chat_service.fail(session_id=str(uuid.uuid4()))
    assert failure.code is grpc.StatusCode.NOT_FOUND
    assert failure.reason == "SESSION_NOT_FOUND"
    assert model.chats == []
    assert count(tmp_path) == 0


async def test_ended_session(start: StartService) -> None:
    async with start(CHAT_SESSION_TTL="0.2") as service:
        session = (await service.ask())[0].started.session_id
        await asyncio.sleep(0.3)
        assert (await service.fail(session_id=session)).reason == "SESSION_NOT_FOUND"


async def test_session_of_another_user(chat_service: Service) -> None:
    session = (await chat_service.ask(user_id="anna"))[0].started.session_id
    failure = await chat_service.fail(user_id="bert", session_id=session)
    assert failure.code is grpc.StatusCode.PERMISSION_DENIED
    assert failure.reason == "SESSION_OF_ANOTHER_USER"


async def test_session_outlives_the_server(start: StartService, model: Upstream) -> None:
    async with start() as service:
        session = (await service.ask("before", user_id="anna"))[0].started.session_id
    async with start() as service:
        await service.ask("after", user_id="anna", session_id=session)
        assert (await service.fail(user_id="bert", session_id=session)).code is grpc.StatusCode.PERMISSION_DENIED
    assert [turn["content"] for turn in model.chats[-1].messages[1:]] == ["before", "Hello there.", "after"]


async def test_options_choose_model_and_retrieval(start: StartService, model: Upstream, memory: Memvid) -> None:
    async with start(CHAT_LLM_MODELS="small, large") as service:
        await service.ask(options=Options(model="large", top_k=1, filters={"tag": "docs"}))
        assert model.chats[0].body["model"] == "large"
        assert memory.requests[0].top_k == 1
        assert dict(memory.requests[0].filters) == {"tag": "docs"}
        assert not memory.requests[0].use_llm
        events = await service.ask(options=Options(retrieval=False))
        assert list(events[1].retrieval.passages) == []
        assert list(events[-1].completed.degraded) == []
        assert len(memory.requests) == 1


async def test_request_id_reaches_memvid_and_history(chat_service: Service, memory: Memvid) -> None:
    call = chat_service.chat.Chat(
        chat_pb2.ChatRequest(message="How?", user_id="anna"), metadata=(("x-request-id", "from-header"),)
    )
    events = [event async for event in call]
    assert events[0].started.request_id == "from-header"
    assert memory.metadata[0]["x-request-id"] == "from-header"
    assert (await chat_service.messages(user_id="anna"))[0].request_id == "from-header"


async def test_unfit_request_id_in_metadata_is_replaced(chat_service: Service) -> None:
    call = chat_service.chat.Chat(chat_pb2.ChatRequest(message="How?"), metadata=(("x-request-id", "a" * 200),))
    events = [event async for event in call]
    assert len(events[0].started.request_id) == 32


async def test_memvid_down_and_back(start: StartService) -> None:
    async with memvid(Memvid()) as port:
        pass  # gone again: nobody listens there
    async with start(CHAT_MEMVID_GRPC_URL=f"127.0.0.1:{port}") as service:
        events = await service.ask()
        assert text_of(events) == "Hello there."
        assert list(events[-1].completed.degraded) == [types_pb2.COMPONENT_RETRIEVAL]
        async with memvid(Memvid(), port):
            async with asyncio.timeout(10):
                while list((await service.ask())[-1].completed.degraded):
                    await asyncio.sleep(0.1)


async def test_memvid_silent(start: StartService, memory: Memvid) -> None:
    memory.hold = asyncio.Event()
    async with start(CHAT_MEMVID_TIMEOUT="0.2") as service:
        events = await service.ask()
        assert list(events[-1].completed.degraded) == [types_pb2.COMPONENT_RETRIEVAL]


async def test_leaving_while_memvid_is_asked(chat_service: Service, model: Upstream, memory: Memvid) -> None:
    memory.hold = asyncio.Event()
    call = chat_service.chat.Chat(chat_pb2.ChatRequest(message="Never mind", user_id="anna"))
    await call.read()
    while not memory.requests:
        await asyncio.sleep(0.005)
    call.cancel()
    await asyncio.wait_for(memory.left.wait(), 5)
    async with asyncio.timeout(5):
        while (await chat_service.messages(user_id="anna"))[0].status != Message.STATUS_CANCELLED:
            await asyncio.sleep(0.01)
    assert model.chats == []


async def test_locked_database(start: StartService, model: Upstream, tmp_path: Path) -> None:
    async with start() as service:
        other = sqlite3.connect(tmp_path / "chat.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        failure = await service.fail(user_id="anna")
        assert failure.code is grpc.StatusCode.UNAVAILABLE
        assert failure.reason == "STORAGE_UNAVAILABLE"
        assert "another process holds it" in failure.message
        assert failure.details["RetryInfo"].retry_delay.ToSeconds() > 0
        assert model.chats == []
        other.execute("ROLLBACK")
        assert await service.messages(user_id="anna") == []
        await service.ask(user_id="anna")
        other.close()


async def test_database_locked_while_the_answer_comes(start: StartService, model: Upstream, tmp_path: Path) -> None:
    """The text was delivered, but not kept: the client must not hear of a completed answer."""
    locked = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        await locked.wait()
        await saying("unkept")(exchange)

    model.answer = answer
    async with start() as service:
        failing = asyncio.ensure_future(service.fail(user_id="anna"))
        await model.next_chat()
        other = sqlite3.connect(tmp_path / "chat.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        locked.set()
        failure = await failing
        assert failure.reason == "STORAGE_UNAVAILABLE"
        assert text_of(failure.events) == "unkept"
        assert not any(event.HasField("completed") for event in failure.events)
        other.execute("ROLLBACK")
        other.close()


class Broken(chat_pb2_grpc.ChatServiceServicer):
    """A servicer with defects that the interceptor must hide."""

    async def Chat(self, request, context):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201 (gRPC's name; a stand-in)
        if request.message == "cancelled":
            raise asyncio.CancelledError
        if request.message == "slow-retry":
            raise Unavailable("wait", retry_after=1.5)
        yield chat_pb2.ChatResponse()
        raise ValueError("SECRET")

    async def ListSuggestedQuestions(self, request, context):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201 (gRPC's name; a stand-in)
        raise KeyError("SECRET")


async def test_unexpected_exceptions_are_hidden(caplog: pytest.LogCaptureFixture) -> None:
    from chat_grpc.rpc.interceptor import ErrorInterceptor
    from chat_grpc.rpc.lifecycle import InFlight

    in_flight = InFlight()
    server = grpc.aio.server(interceptors=[ErrorInterceptor(in_flight)])
    chat_pb2_grpc.add_ChatServiceServicer_to_server(Broken(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = chat_pb2_grpc.ChatServiceStub(channel)
        calls: tuple[tuple[Any, Any], ...] = (
            (stub.Chat, chat_pb2.ChatRequest()),
            (stub.ListSuggestedQuestions, chat_pb2.ListSuggestedQuestionsRequest()),
            (stub.Chat, chat_pb2.ChatRequest(message="cancelled")),
        )
        for method, request in calls:
            failure = await failure_of(method(request, timeout=5))
            assert failure.code is grpc.StatusCode.INTERNAL
            assert failure.reason == "INTERNAL"
            assert "SECRET" not in str(failure)
            request_id = failure.details["RequestInfo"].request_id
            assert failure.trailers["x-request-id"] == request_id
            assert any(record.levelname == "ERROR" for record in caplog.records)
            caplog.clear()
        failure = await failure_of(stub.Chat(chat_pb2.ChatRequest(message="slow-retry")))
        assert failure.trailers["retry-after"] == "2"
        assert failure.details["RetryInfo"].retry_delay.nanos == 500_000_000
    assert in_flight.count == 0
    await server.stop(None)


def count(folder: Path) -> int:
    with sqlite3.connect(folder / "chat.db") as raw:
        [(rows,)] = raw.execute("SELECT count(*) FROM messages").fetchall()
    return int(rows)
