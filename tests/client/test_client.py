"""The client against the whole server, over a real channel."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import grpc
import pytest

import chat_grpc.client
from chat_grpc.client import (
    ChatClient,
    ChatError,
    Completed,
    Component,
    Delta,
    FinishReason,
    GetHealthResponseStatus,
    MessageStatus,
    Retrieval,
    Started,
)
from tests.support.memvid import Memvid
from tests.support.service import Service
from tests.support.upstream import Exchange, Upstream


async def test_events_come_as_dataclasses_in_order(chat_service: Service) -> None:
    async with ChatClient(chat_service.address) as client:
        events = [event async for event in client.chat("How do I keep messages?", user_id="ada")]
    started, retrieval, *deltas, completed = events
    assert isinstance(started, Started)
    assert started.message_id.startswith("msg_")
    assert isinstance(retrieval, Retrieval)
    assert [passage.title for passage in retrieval.passages] == ["Storage › DynamoDB", "Storage › SQLite"]
    assert "".join(delta.text for delta in deltas if isinstance(delta, Delta)) == "Hello there."
    assert isinstance(completed, Completed)
    assert completed.finish_reason == FinishReason.STOP
    assert completed.session_id == started.session_id
    assert completed.usage is not None
    assert completed.usage.total_tokens == 10


async def test_an_empty_retrieval_is_an_event_too(chat_service: Service, memory: Memvid) -> None:
    memory.passages = ()
    async with ChatClient(chat_service.address) as client:
        events = [event async for event in client.chat("Hello")]
    assert isinstance(events[1], Retrieval)
    assert events[1].passages == []


async def test_answer_returns_the_whole(chat_service: Service) -> None:
    async with ChatClient(chat_service.address) as client:
        answer = await client.answer("How?")
    assert answer.text == "Hello there."
    assert len(answer.passages) == 2
    assert answer.completed.model == "local/test-model"


async def test_options_reach_model_and_memory(chat_service: Service, model: Upstream, memory: Memvid) -> None:
    async with ChatClient(chat_service.address) as client:
        await client.answer("How?", max_tokens=7, temperature=0.5, top_k=1)
        assert model.chats[-1].body["temperature"] == 0.5
        assert 7 in model.chats[-1].body.values()
        assert memory.requests[-1].top_k == 1
        asked = len(memory.requests)
        answer = await client.answer("How?", retrieval=False)
    assert len(memory.requests) == asked
    assert answer.passages == ()


async def test_a_session_goes_on(chat_service: Service, model: Upstream) -> None:
    async with ChatClient(chat_service.address) as client:
        first = await client.answer("My name is Ada.")
        second = await client.answer("What is my name?", session_id=first.completed.session_id)
    assert second.completed.session_id == first.completed.session_id
    assert any("My name is Ada." in turn["content"] for turn in model.chats[-1].messages)


async def test_leaving_early_ends_the_request_to_the_model(chat_service: Service, model: Upstream) -> None:
    async def endless(exchange: Exchange) -> None:
        await exchange.start()
        while True:
            await exchange.text("more ")
            await asyncio.sleep(0.01)

    model.answer = endless
    async with ChatClient(chat_service.address) as client:
        async with aclosing(client.chat("Talk.", user_id="ada")) as events:
            async for event in events:
                if isinstance(event, Delta):
                    break
        async with asyncio.timeout(10):
            await model.chats[-1].gone.wait()
            while (message := await anext(client.list_messages(user_id="ada"))).status == MessageStatus.PENDING:
                await asyncio.sleep(0.01)
    assert message.status == MessageStatus.CANCELLED
    assert message.answer.startswith("more ")


async def test_cancelling_the_task_is_no_chat_error(chat_service: Service, model: Upstream) -> None:
    hold = asyncio.Event()

    async def silent(exchange: Exchange) -> None:
        await exchange.start()
        await hold.wait()

    model.answer = silent
    async with ChatClient(chat_service.address) as client:
        asking = asyncio.create_task(client.answer("Hello"))
        exchange = await model.next_chat()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        async with asyncio.timeout(10):
            await exchange.gone.wait()


async def test_a_broken_rule_names_the_field(chat_service: Service) -> None:
    async with ChatClient(chat_service.address) as client:
        with pytest.raises(ChatError) as caught:
            await client.answer(" ")
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert [violation.field for violation in caught.value.violations] == ["message"]
    assert caught.value.retry_after is None


async def test_a_failing_model_says_when_to_try_again(chat_service: Service, model: Upstream) -> None:
    model.answer = lambda exchange: exchange.refuse(500)
    async with ChatClient(chat_service.address) as client:
        with pytest.raises(ChatError) as caught:
            await client.answer("Hello")
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    assert caught.value.reason.startswith("MODEL_")
    assert caught.value.metadata["provider"] == "local"
    assert caught.value.retry_after is not None
    assert caught.value.retry_after > 0
    assert "SECRET-UPSTREAM-TEXT" not in str(caught.value)


async def test_nobody_there(unused_tcp_port: int) -> None:
    async with ChatClient(f"127.0.0.1:{unused_tcp_port}") as client:
        with pytest.raises(ChatError, match=f"no chat server at 127.0.0.1:{unused_tcp_port}") as caught:
            await client.health()
        assert caught.value.reason == "UNREACHABLE"
        with pytest.raises(ChatError) as caught:
            await client.answer("Hello")
        assert caught.value.reason == "UNREACHABLE"


async def test_a_deadline_of_the_caller(chat_service: Service, model: Upstream) -> None:
    hold = asyncio.Event()

    async def silent(exchange: Exchange) -> None:
        await exchange.start()
        await hold.wait()

    model.answer = silent
    async with ChatClient(chat_service.address) as client:
        with pytest.raises(ChatError) as caught:
            await client.answer("Hello", timeout=0.2)
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_history_goes_over_pages_and_is_deleted(chat_service: Service) -> None:
    async with ChatClient(chat_service.address) as client:
        for number in range(5):
            await client.answer(f"Question {number}", user_id="ada")
        listed = [message.message async for message in client.list_messages(user_id="ada", page_size=2)]
        assert listed == [f"Question {number}" for number in (4, 3, 2, 1, 0)]
        assert await client.delete_messages(user_id="ada") == 5
        assert [message async for message in client.list_messages(user_id="ada")] == []


async def test_health_and_suggested_questions(chat_service: Service, memory: Memvid) -> None:
    async with ChatClient(chat_service.address) as client:
        health = await client.health()
        assert health.status == GetHealthResponseStatus.HEALTHY
        assert [part.component for part in health.components] == [
            Component.RETRIEVAL,
            Component.LLM,
            Component.STORAGE,
        ]
        assert [question.question for question in await client.suggested_questions()] == ["What is it?"]
        memory.profile = None
        with pytest.raises(ChatError) as caught:
            await client.suggested_questions()
    assert caught.value.code is grpc.StatusCode.NOT_FOUND


async def test_many_answers_over_one_client(chat_service: Service) -> None:
    async with ChatClient(chat_service.address) as client:
        answers = await asyncio.gather(
            *(client.answer(f"Question {number}", user_id=f"user{number}") for number in range(20))
        )
    assert {answer.text for answer in answers} == {"Hello there."}
    assert len({answer.completed.session_id for answer in answers}) == 20


async def test_a_client_that_is_not_open_says_how_to_open_it() -> None:
    with pytest.raises(RuntimeError, match="async with"):
        await ChatClient().health()


def test_exported_names() -> None:
    assert sorted(chat_grpc.client.__all__) == [
        "Answer",
        "ChatClient",
        "ChatError",
        "Completed",
        "Component",
        "ComponentHealth",
        "Delta",
        "Event",
        "FinishReason",
        "GetHealthResponse",
        "GetHealthResponseStatus",
        "Message",
        "MessageStatus",
        "Passage",
        "Retrieval",
        "Started",
        "SuggestedQuestion",
        "Usage",
        "Violation",
    ]
    assert all(hasattr(chat_grpc.client, name) for name in chat_grpc.client.__all__)
