"""Cache, single flight and idempotency, seen from gRPC clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import grpc
import pytest

from chat_grpc._gen.chat.v1 import chat_pb2, history_pb2
from chat_grpc.domain import FinishReason
from chat_grpc.llm import Ending, Models, Opened, Prompt, Sink
from tests.support.fixtures import StartService
from tests.support.memvid import Memvid
from tests.support.service import Failure, Service, failure_of, text_of
from tests.support.upstream import Exchange, Upstream, saying

Message = history_pb2.Message
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


class Client:
    """A client in the middle of an answer."""

    def __init__(self, service: Service, message: str = "How?", **fields: Any) -> None:
        self.call = service.chat.Chat(chat_pb2.ChatRequest(message=message, **fields))
        self.events: list[chat_pb2.ChatResponse] = []

    async def until_text(self) -> Client:
        while not text_of(self.events):
            self.events.append(await self.call.read())
        return self

    async def finish(self) -> list[chat_pb2.ChatResponse]:
        while (event := await self.call.read()) is not grpc.aio.EOF:
            self.events.append(event)
        return self.events


async def status(service: Service, user: str) -> Message:
    """Return the only message of a user, once it is no longer pending."""
    async with asyncio.timeout(5):
        while True:
            [message] = await service.messages(user_id=user)
            if message.status != Message.STATUS_PENDING:
                return message
            await asyncio.sleep(0.01)


class AtOnce:
    """Models of which the first one answers in the very moment in which it may be asked."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def __getattr__(self, name: str) -> Any:
        return getattr(self._models, name)

    async def begin(self, prompt: Prompt) -> Opened:
        async def answer() -> AsyncGenerator[str | Ending, Sink | None]:
            yield "They "
            yield "say"
            yield Ending(FinishReason.STOP, None)

        while prompt.kept is not None and not prompt.kept.done():
            await asyncio.sleep(0)
        rest = answer()
        return Opened("local/test-model", False, await anext(rest), rest, lambda _: None, lambda: None)  # noqa: FBT003 (fallback)


async def test_a_model_that_answers_at_once_is_not_heard_before_the_message_is_known_to_be_kept(
    chat_service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversation = chat_service.parts.conversation
    monkeypatch.setattr(conversation._writer, "_models", AtOnce(conversation._writer._models))
    for question in ("What?", "When?"):
        events = await chat_service.ask(question, options=Options(retrieval=False))
        assert text_of(events) == "They say"
        kinds = [event.WhichOneof("event") for event in events]
        assert kinds[:3] == ["started", "retrieval", "delta"]
        assert kinds[-1] == "completed"


# --- the cache ---------------------------------------------------------------


async def test_an_equal_request_is_answered_from_the_cache(chat_service: Service, model: Upstream) -> None:
    first = await chat_service.ask(user_id="anna")
    second = await chat_service.ask(user_id="bert")
    assert len(model.chats) == 1
    assert text_of(second) == text_of(first)
    assert [event.WhichOneof("event") for event in second] == ["started", "retrieval", "delta", "completed"]
    was, now = first[-1].completed, second[-1].completed
    assert (was.cached, now.cached) == (False, True)
    assert now.usage.cost_usd == 0
    assert now.usage.total_tokens == was.usage.total_tokens
    assert now.message_id != was.message_id
    assert now.session_id != was.session_id
    assert (await chat_service.messages(user_id="bert"))[0].cached


@pytest.mark.parametrize(
    "other",
    [
        {"message": "Why?"},
        {"options": Options(max_tokens=7)},
        {"options": Options(temperature=0.1)},
        {"options": Options(model="large")},
        {"options": Options(retrieval=False)},
        {"options": Options(top_k=1)},
        {"options": Options(skip_cache=True)},
    ],
    ids=lambda fields: str(fields).replace("\n", " "),
)
async def test_what_can_change_an_answer_is_part_of_the_key(
    start: StartService, model: Upstream, other: dict[str, Any]
) -> None:
    async with start(CHAT_LLM_MODELS="large") as service:
        await service.ask("How?")
        assert not (await service.ask(**{"message": "How?", **other}))[-1].completed.cached
    assert len(model.chats) == 2


async def test_other_passages_are_another_question(chat_service: Service, model: Upstream, memory: Memvid) -> None:
    await chat_service.ask()
    memory.passages = (("News", "Everything has changed."),)
    assert not (await chat_service.ask())[-1].completed.cached
    assert len(model.chats) == 2


async def test_another_history_is_another_question(chat_service: Service, model: Upstream) -> None:
    session = (await chat_service.ask("How?"))[0].started.session_id
    assert not (await chat_service.ask("How?", session_id=session))[-1].completed.cached
    assert len(model.chats) == 2


async def test_failures_are_not_cached(chat_service: Service, model: Upstream) -> None:
    model.answer = saying("cut off", reason=None)
    await chat_service.fail()
    model.answer = saying("withheld", reason="content_filter")
    await chat_service.ask()
    model.answer = saying("fine")
    events = await chat_service.ask()
    assert text_of(events) == "fine"
    assert not events[-1].completed.cached


async def test_answers_are_kept_for_so_long(start: StartService, model: Upstream) -> None:
    async with start(CHAT_CACHE_SECONDS="0.3") as service:
        await service.ask()
        assert (await service.ask())[-1].completed.cached
        await asyncio.sleep(0.4)
        assert not (await service.ask())[-1].completed.cached


async def test_a_cache_of_no_seconds_keeps_nothing(start: StartService, model: Upstream) -> None:
    async with start(CHAT_CACHE_SECONDS="0") as service:
        await service.ask()
        assert not (await service.ask())[-1].completed.cached


async def test_skip_cache_writes_anew_and_keeps_that(chat_service: Service, model: Upstream) -> None:
    await chat_service.ask()
    model.answer = saying("newer")
    assert text_of(await chat_service.ask(options=Options(skip_cache=True))) == "newer"
    events = await chat_service.ask()
    assert (text_of(events), events[-1].completed.cached) == ("newer", True)


# --- single flight -----------------------------------------------------------


async def test_equal_requests_in_flight_share_one_answer(chat_service: Service, model: Upstream) -> None:
    model.answer = held = Held()
    pilot = await Client(chat_service, user_id="anna").until_text()
    followers = [await Client(chat_service, user_id=f"user{number}").until_text() for number in range(5)]
    assert len(model.chats) == 1
    held.go_on.set()
    for client in (pilot, *followers):
        assert text_of(await client.finish()) == "half whole"
    assert [client.events[-1].completed.cached for client in (pilot, *followers)] == [False] + [True] * 5
    assert len({client.events[-1].completed.message_id for client in (pilot, *followers)}) == 6
    assert len(model.chats) == 1
    for number in range(5):
        assert (await status(chat_service, f"user{number}")).answer == "half whole"


async def test_the_pilot_leaves_and_the_followers_stay(chat_service: Service, model: Upstream) -> None:
    model.answer = held = Held()
    pilot = await Client(chat_service, user_id="anna").until_text()
    follower = await Client(chat_service, user_id="bert").until_text()
    pilot.call.cancel()
    left = await status(chat_service, "anna")
    assert (left.status, left.answer) == (Message.STATUS_CANCELLED, "half ")
    late = await Client(chat_service, user_id="carl").until_text()
    held.go_on.set()
    assert text_of(await follower.finish()) == text_of(await late.finish()) == "half whole"
    assert len(model.chats) == 1
    assert (await status(chat_service, "anna")).status == Message.STATUS_CANCELLED
    assert (await chat_service.ask(user_id="dora"))[-1].completed.cached


async def test_a_follower_leaves_and_the_pilot_stays(chat_service: Service, model: Upstream) -> None:
    model.answer = held = Held()
    pilot = await Client(chat_service, user_id="anna").until_text()
    follower = await Client(chat_service, user_id="bert").until_text()
    follower.call.cancel()
    assert (await status(chat_service, "bert")).status == Message.STATUS_CANCELLED
    held.go_on.set()
    assert text_of(await pilot.finish()) == "half whole"


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
async def test_the_last_one_to_leave_ends_it(chat_service: Service, model: Upstream, order: tuple[int, ...]) -> None:
    model.answer = Held()
    users = ("anna", "bert", "carl")
    clients = [await Client(chat_service, user_id=user).until_text() for user in users]
    *first, last = order
    for number in first:
        clients[number].call.cancel()
        assert (await status(chat_service, users[number])).status == Message.STATUS_CANCELLED
    assert not model.chats[0].gone.is_set()
    clients[last].call.cancel()
    await asyncio.wait_for(model.chats[0].gone.wait(), 5)
    assert (await status(chat_service, users[last])).status == Message.STATUS_CANCELLED
    model.answer = saying("anew")
    assert text_of(await chat_service.ask()) == "anew"


async def test_everyone_on_a_flight_hears_of_its_failure(chat_service: Service, model: Upstream) -> None:
    go_on = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.text("half ")
        await go_on.wait()
        exchange.close()

    model.answer = answer
    clients = [await Client(chat_service, user_id=user).until_text() for user in ("anna", "bert")]
    go_on.set()
    for client, user in zip(clients, ("anna", "bert"), strict=True):
        failure = await failure_of_rest(client)
        assert failure.reason == "MODEL_CUT"
        kept = await status(chat_service, user)
        assert (kept.status, kept.answer) == (Message.STATUS_PARTIAL, "half ")


# --- idempotency -------------------------------------------------------------


async def test_the_same_request_attaches_to_the_running_answer(chat_service: Service, model: Upstream) -> None:
    model.answer = held = Held()
    one = await Client(chat_service, user_id="anna", request_id="r1").until_text()
    two = await Client(chat_service, user_id="anna", request_id="r1").until_text()
    assert two.events[0] == one.events[0]
    one.call.cancel()
    held.go_on.set()
    events = await two.finish()
    assert text_of(events) == "half whole"
    assert events[-1].completed.message_id == events[0].started.message_id
    assert len(model.chats) == 1
    assert (await status(chat_service, "anna")).status == Message.STATUS_COMPLETED


async def test_requests_of_one_name_at_the_same_moment_are_one(chat_service: Service, model: Upstream) -> None:
    answers = await asyncio.gather(*(chat_service.ask(user_id="anna", request_id="r1") for _ in range(8)))
    assert len({events[-1].completed.message_id for events in answers}) == 1
    assert {text_of(events) for events in answers} == {"Hello there."}
    assert len(model.chats) == 1
    assert len(await chat_service.messages(user_id="anna")) == 1
    assert len(chat_service.parts.conversation._sessions) == 1


async def test_the_same_request_later_replays_the_kept_answer(start: StartService, model: Upstream) -> None:
    async with start() as service:
        first = await service.ask(user_id="anna", request_id="r1")
        again = await service.ask(user_id="anna", request_id="r1")
    async with start() as service:  # also after a restart
        once_more = await service.ask(user_id="anna", request_id="r1")
        assert len(await service.messages(user_id="anna")) == 1
        assert len(service.parts.conversation._sessions) == 0
    for events in (again, once_more):
        assert events[0] == first[0]
        assert events[1].retrieval.passages == first[1].retrieval.passages
        assert text_of(events) == text_of(first)
        assert events[-1] == first[-1]
    assert len(model.chats) == 1


async def test_another_request_of_the_same_name_is_refused(chat_service: Service, model: Upstream) -> None:
    await chat_service.ask("How?", user_id="anna", request_id="r1")
    model.answer = held = Held()
    running = await Client(chat_service, "Where?", user_id="anna", request_id="r2").until_text()
    others: tuple[dict[str, Any], ...] = (
        {"message": "Why?", "request_id": "r1"},
        {"message": "How?", "request_id": "r1", "options": Options(top_k=1)},
        {"message": "Why?", "request_id": "r2"},
    )
    for other in others:
        failure = await chat_service.fail(**{"user_id": "anna", **other})
        assert failure.code is grpc.StatusCode.ABORTED
        assert failure.reason == "REQUEST_ID_REUSED"
    held.go_on.set()
    await running.finish()
    assert len(model.chats) == 2
    assert len(await chat_service.messages(user_id="anna")) == 2


async def test_names_are_each_users_own(chat_service: Service) -> None:
    anna = await chat_service.ask("How?", user_id="anna", request_id="r1")
    bert = await chat_service.ask("Why?", user_id="bert", request_id="r1")
    assert anna[0].started.message_id != bert[0].started.message_id


async def test_a_failed_request_may_be_tried_again_under_its_name(chat_service: Service, model: Upstream) -> None:
    model.answer = saying("cut off", reason=None)
    await chat_service.fail(user_id="anna", request_id="r1")
    model.answer = saying("fine")
    assert text_of(await chat_service.ask(user_id="anna", request_id="r1")) == "fine"
    assert [message.status for message in await chat_service.messages(user_id="anna")] == [
        Message.STATUS_COMPLETED,
        Message.STATUS_PARTIAL,
    ]


async def test_a_request_that_was_left_may_be_tried_again_at_once(chat_service: Service, model: Upstream) -> None:
    model.answer = Held()
    left = await Client(chat_service, user_id="anna", request_id="r1").until_text()
    left.call.cancel()
    await asyncio.wait_for(model.chats[0].gone.wait(), 5)
    model.answer = saying("fine")
    assert text_of(await chat_service.ask(user_id="anna", request_id="r1")) == "fine"


async def test_nothing_is_left_running(chat_service: Service, model: Upstream) -> None:
    for _ in range(3):
        await chat_service.ask()
    call = chat_service.chat.Chat(chat_pb2.ChatRequest(message="Never mind"))
    await call.read()
    call.cancel()
    async with asyncio.timeout(5):
        while chat_service.parts.conversation.working:
            await asyncio.sleep(0.01)
    assert len(chat_service.parts.conversation._flights) == 0


async def failure_of_rest(client: Client) -> Failure:
    """Read a call that has been read from already to its end, which must be an error."""

    class Rest:
        def __await__(self) -> Any:
            return client.finish().__await__()

    return await failure_of(Rest())
