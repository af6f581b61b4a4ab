"""Two servers on one Redis are one service, seen from gRPC clients.

Each of them has a database of its own, unless a test gives them one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest

from chat_grpc._gen.chat.v1 import chat_pb2, history_pb2, types_pb2
from chat_grpc._gen.chat.v1 import health_pb2 as chat_health_pb2
from tests.shared.conftest import other_questions, script_runs
from tests.support.fixtures import StartService
from tests.support.memvid import Memvid
from tests.support.metrics import scrape
from tests.support.redis import Proxy, RedisServer, proxy
from tests.support.service import Service, text_of
from tests.support.upstream import Exchange, Upstream, saying

Options = chat_pb2.ChatOptions
StartTwo = Callable[..., AbstractAsyncContextManager[tuple[Service, Service]]]


class Held:
    """An answer that says "half", and the rest once it is let go on."""

    def __init__(self, *, cut: bool = False) -> None:
        self.go_on = asyncio.Event()
        self._cut = cut

    async def __call__(self, exchange: Exchange) -> None:
        await exchange.start()
        await exchange.text("half ")
        await self.go_on.wait()
        if self._cut:
            exchange.close()
            return
        await exchange.text("whole")
        await exchange.finish()


class Client:
    """A client in the middle of an answer."""

    def __init__(self, service: Service, message: str = "How?", **fields: Any) -> None:
        self.call = service.chat.Chat(chat_pb2.ChatRequest(message=message, **fields))
        self.events: list[chat_pb2.ChatResponse] = []

    async def until_text(self) -> Client:
        async with asyncio.timeout(20):
            while not text_of(self.events):
                self.events.append(await self.call.read())
        return self

    async def finish(self) -> list[chat_pb2.ChatResponse]:
        async with asyncio.timeout(20):
            while (event := await self.call.read()) is not grpc.aio.EOF:
                self.events.append(event)
        return self.events


@pytest.fixture
async def two(start: StartService, redis: RedisServer, tmp_path: Path) -> AsyncIterator[tuple[Service, Service]]:
    """Two servers on one Redis, each with a database of its own."""
    async with AsyncExitStack() as stack:
        one, other = [
            await stack.enter_async_context(
                start(CHAT_REDIS_URL=redis.url, CHAT_DATABASE_URL=f"sqlite+aiosqlite:///{tmp_path}/{number}.db")
            )
            for number in range(2)
        ]
        yield one, other


@pytest.fixture
async def siblings(start: StartService, redis: RedisServer) -> AsyncIterator[tuple[Service, Service]]:
    """Two servers on one Redis and one database."""
    async with start(CHAT_REDIS_URL=redis.url) as one, start(CHAT_REDIS_URL=redis.url) as other:
        yield one, other


# --- the cache ---------------------------------------------------------------


async def test_an_answer_is_given_by_the_other_server(two: tuple[Service, Service], model: Upstream) -> None:
    one, other = two
    first = await one.ask(user_id="anna")
    second = await other.ask(user_id="bert")
    assert len(model.chats) == 1
    assert text_of(second) == text_of(first) == "Hello there."
    assert [event.WhichOneof("event") for event in second] == ["started", "retrieval", "delta", "completed"]
    was, now = first[-1].completed, second[-1].completed
    assert (was.cached, now.cached) == (False, True)
    assert now.usage.cost_usd == 0
    assert (list(was.degraded), list(now.degraded)) == ([], [])


@pytest.mark.parametrize(
    "changed",
    [
        {"message": "Why?"},
        {"options": Options(max_tokens=7)},
        {"options": Options(temperature=0.1)},
        {"options": Options(retrieval=False)},
        {"options": Options(skip_cache=True)},
    ],
    ids=lambda fields: str(fields).replace("\n", " "),
)
async def test_what_can_change_an_answer_is_part_of_the_key(
    two: tuple[Service, Service], model: Upstream, changed: dict[str, Any]
) -> None:
    await two[0].ask("How?")
    assert not (await two[1].ask(**{"message": "How?", **changed}))[-1].completed.cached
    assert len(model.chats) == 2


async def test_other_passages_are_another_question(
    two: tuple[Service, Service], model: Upstream, memory: Memvid
) -> None:
    await two[0].ask()
    memory.passages = (("News", "Everything has changed."),)
    assert not (await two[1].ask())[-1].completed.cached


async def test_skip_cache_writes_anew_and_keeps_that(two: tuple[Service, Service], model: Upstream) -> None:
    await two[0].ask()
    model.answer = saying("newer")
    assert text_of(await two[0].ask(options=Options(skip_cache=True))) == "newer"
    events = await two[1].ask()
    assert (text_of(events), events[-1].completed.cached) == ("newer", True)


async def test_failures_are_not_cached(two: tuple[Service, Service], model: Upstream) -> None:
    model.answer = saying("cut off", reason=None)
    await two[0].fail()
    model.answer = saying("withheld", reason="content_filter")
    await two[1].ask()
    model.answer = saying("fine")
    events = await two[0].ask()
    assert (text_of(events), events[-1].completed.cached) == ("fine", False)


# --- sessions ----------------------------------------------------------------


async def test_a_session_goes_on_at_any_server(two: tuple[Service, Service], model: Upstream) -> None:
    model.answer = saying("one")
    session = (await two[0].ask("First?", user_id="anna"))[0].started.session_id
    model.answer = saying("two")
    await two[1].ask("Second?", user_id="anna", session_id=session)
    model.answer = saying("three")
    await two[0].ask("Third?", user_id="anna", session_id=session.upper())
    await two[1].ask("Fourth?", user_id="anna", session_id=session)
    said = [[turn["content"] for turn in chat.messages if turn["role"] != "system"] for chat in model.chats]
    assert said == [
        ["First?"],
        ["First?", "one", "Second?"],
        ["First?", "one", "Second?", "two", "Third?"],
        ["First?", "one", "Second?", "two", "Third?", "three", "Fourth?"],
    ]


async def test_only_so_much_is_remembered(start: StartService, redis: RedisServer, model: Upstream) -> None:
    settings = {"CHAT_REDIS_URL": redis.url, "CHAT_SESSION_TURNS": "2"}
    async with start(**settings) as one, start(**settings) as other:
        session = ""
        for number in range(5):
            session = (await (one, other)[number % 2].ask(f"{number}?", session_id=session))[0].started.session_id
    asked = [turn["content"] for turn in model.chats[-1].messages if turn["role"] == "user"]
    assert asked == ["2?", "3?", "4?"]


async def test_equal_sessions_share_answers(two: tuple[Service, Service], model: Upstream) -> None:
    cached = []
    for service in two:
        session = (await service.ask("First?"))[0].started.session_id
        cached.append((await service.ask("Second?", session_id=session))[-1].completed.cached)
    assert cached == [False, True]
    assert len(model.chats) == 2


async def test_another_users_session_is_refused(two: tuple[Service, Service], model: Upstream) -> None:
    session = (await two[0].ask(user_id="anna"))[0].started.session_id
    failure = await two[1].fail(user_id="bert", session_id=session)
    assert (failure.code, failure.reason) == (grpc.StatusCode.PERMISSION_DENIED, "SESSION_OF_ANOTHER_USER")
    unknown = await two[1].fail(session_id="7f8f6e54-9d7c-4a3d-9f55-0c1f4f3f6a10")
    assert unknown.reason == "SESSION_NOT_FOUND"


async def test_a_session_that_redis_lost_is_read_from_the_history(
    siblings: tuple[Service, Service], redis: RedisServer, model: Upstream
) -> None:
    session = (await siblings[0].ask("First?"))[0].started.session_id
    redis.client.flushall()
    await siblings[1].ask("Second?", session_id=session)
    await siblings[0].ask("Third?", session_id=session)
    asked = [turn["content"] for turn in model.chats[-1].messages if turn["role"] == "user"]
    assert asked == ["First?", "Second?", "Third?"]


@pytest.mark.parametrize("by", ["user", "session"])
async def test_a_deleted_session_is_gone_everywhere(siblings: tuple[Service, Service], by: str) -> None:
    session = (await siblings[0].ask("First?", user_id="anna"))[0].started.session_id
    await siblings[1].ask("Second?", user_id="anna", session_id=session)
    scope = {"user_id": "anna"} if by == "user" else {"session_id": session}
    await siblings[0].history.DeleteMessages(history_pb2.DeleteMessagesRequest(**scope))
    for service in siblings:
        assert (await service.fail(user_id="anna", session_id=session)).reason == "SESSION_NOT_FOUND"


# --- limits ------------------------------------------------------------------


async def test_a_limit_holds_over_all_servers(start: StartService, redis: RedisServer) -> None:
    settings = {"CHAT_REDIS_URL": redis.url, "CHAT_RATE_LIMIT": "100/day"}
    async with start(**settings) as one, start(**settings) as other:
        codes = set()

        async def asked(number: int) -> bool:
            try:
                await (one, other)[number % 2].ask(user_id="anna")
            except grpc.aio.AioRpcError as error:
                codes.add(error.code())
                return False
            return True

        let_through = 0
        for first in range(0, 140, 7):  # fewer at once than one user may receive
            let_through += sum(await asyncio.gather(*(asked(number) for number in range(first, first + 7))))
        assert let_through == 100
        assert codes == {grpc.StatusCode.RESOURCE_EXHAUSTED}


async def test_who_is_known_to_be_refused_costs_no_question(
    start: StartService, network: Proxy, model: Upstream, memory: Memvid
) -> None:
    async with start(CHAT_REDIS_URL=network.url, CHAT_RATE_LIMIT="2/day") as service:
        for _ in range(2):
            await service.ask(user_id="anna")
        before, searched = len(network.trips), len(memory.requests)
        failure = await service.fail(user_id="anna")
        assert failure.reason == "RATE_LIMITED"
        assert failure.details["ErrorInfo"].metadata["limit"] == "user"
        assert "RetryInfo" in failure.details
        assert (len(network.trips), len(memory.requests)) == (before, searched)


# --- single flight -----------------------------------------------------------


async def test_equal_requests_in_flight_share_one_answer(two: tuple[Service, Service], model: Upstream) -> None:
    model.answer = held = Held()
    pilot = await Client(two[0], user_id="anna").until_text()
    followers = [await Client(two[1], user_id=f"user{number}").until_text() for number in range(3)]
    assert [text_of(client.events) for client in followers] == ["half "] * 3
    held.go_on.set()
    for client in (pilot, *followers):
        assert text_of(await client.finish()) == "half whole"
    assert [client.events[-1].completed.cached for client in (pilot, *followers)] == [False, True, True, True]
    assert len(model.chats) == 1


async def test_who_comes_to_the_last_word_is_given_all_of_it(two: tuple[Service, Service], model: Upstream) -> None:
    async def slowly(exchange: Exchange) -> None:
        await exchange.start()
        for number in range(60):
            await exchange.text(f"{number} ")
            await asyncio.sleep(0.005)
        await exchange.finish()

    model.answer = slowly
    text = "".join(f"{number} " for number in range(60))

    async def asked(number: int) -> str:
        await asyncio.sleep(number * 0.012)
        return text_of(await two[number % 2].ask(user_id=f"user{number}"))

    assert set(await asyncio.gather(*(asked(number) for number in range(40)))) == {text}
    assert len(model.chats) == 1


async def test_the_pilot_leaves_and_the_followers_stay(two: tuple[Service, Service], model: Upstream) -> None:
    model.answer = held = Held()
    pilot = await Client(two[0], user_id="anna").until_text()
    follower = await Client(two[1], user_id="bert").until_text()
    pilot.call.cancel()
    await asyncio.sleep(0.2)
    held.go_on.set()
    assert text_of(await follower.finish()) == "half whole"
    assert len(model.chats) == 1


async def test_a_server_that_stops_leaves_no_follower_waiting(
    start: StartService, redis: RedisServer, model: Upstream
) -> None:
    model.answer = Held()
    async with start(CHAT_REDIS_URL=redis.url) as other:
        async with asyncio.timeout(20), start(CHAT_REDIS_URL=redis.url) as one:
            pilot = await Client(one, user_id="anna").until_text()
            follower = await Client(other, user_id="bert").until_text()
            pilot.call.cancel()
            await asyncio.sleep(0.2)  # the answer goes on for the other server only, and its model says nothing more
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await follower.finish()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert b"WRITER_LOST" in dict(caught.value.trailing_metadata() or ())["grpc-status-details-bin"]
        model.answer = saying("anew")
        assert text_of(await other.ask()) == "anew"


async def test_without_followers_the_pilot_ends_it(two: tuple[Service, Service], model: Upstream) -> None:
    model.answer = Held()
    pilot = await Client(two[0], user_id="anna").until_text()
    pilot.call.cancel()
    await asyncio.wait_for(model.chats[0].gone.wait(), 5)
    model.answer = saying("anew")
    assert text_of(await two[1].ask()) == "anew"


async def test_everyone_hears_of_its_failure(two: tuple[Service, Service], model: Upstream) -> None:
    model.answer = held = Held(cut=True)
    clients = [await Client(service).until_text() for service in two]
    held.go_on.set()
    for client in clients:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.finish()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert len(model.chats) == 1


async def test_a_request_of_the_same_name_is_answered_once(siblings: tuple[Service, Service], model: Upstream) -> None:
    first = await siblings[0].ask(user_id="anna", request_id="r1")
    again = await siblings[1].ask(user_id="anna", request_id="r1")
    assert again[0] == first[0]
    assert again[-1] == first[-1]
    assert text_of(again) == text_of(first)
    assert len(model.chats) == 1
    assert len(await siblings[0].messages(user_id="anna")) == 1


async def test_a_request_of_the_same_name_joins_the_answer_on_the_other_server(
    siblings: tuple[Service, Service], model: Upstream
) -> None:
    model.answer = held = Held()
    pilot = await Client(siblings[0], user_id="anna", request_id="r1").until_text()
    again = await Client(siblings[1], user_id="anna", request_id="r1").until_text()
    held.go_on.set()
    first, second = await pilot.finish(), await again.finish()
    assert text_of(first) == text_of(second) == "half whole"
    assert first[0] == second[0]
    assert first[-1] == second[-1]
    assert len(model.chats) == 1
    assert len(await siblings[0].messages(user_id="anna")) == 1


# --- round trips -------------------------------------------------------------


async def test_one_question_before_the_model_and_one_word_after(
    start: StartService, redis: RedisServer, model: Upstream
) -> None:
    async with proxy(redis) as network, start(CHAT_REDIS_URL=network.url) as service:
        session = (await service.ask("Warm up?"))[0].started.session_id  # connects, and Redis learns the scripts

        network.trips.clear()
        before = []

        async def answer(exchange: Exchange) -> None:
            before.append(script_runs(network))
            await saying("Hello.")(exchange)

        model.answer = answer
        for fields in ({"session_id": ""}, {"session_id": session}, {"request_id": "named"}, {"user_id": "anna"}):
            network.trips.clear()
            before.clear()
            await service.ask(f"New {fields}?", **fields)
            assert (before, script_runs(network), other_questions(network)) == ([1], 2, [])
        network.trips.clear()
        await service.ask("Warm up?")  # from the cache
        assert (script_runs(network), other_questions(network)) == (2, [])


# --- faults ------------------------------------------------------------------


def redis_health(report: Any) -> Any:
    [part] = [part for part in report.components if part.component == types_pb2.COMPONENT_CACHE]
    return part


async def until_shared(service: Service) -> None:
    async with asyncio.timeout(20):
        while True:
            report = await service.health.GetHealth(chat_health_pb2.GetHealthRequest())
            if redis_health(report).status == chat_health_pb2.GetHealthResponse.STATUS_HEALTHY:
                return
            await asyncio.sleep(0.05)


def happen(fault: str, network: Proxy, redis: RedisServer) -> None:
    match fault:
        case "cut":
            network.cut()
        case "late":
            network.delay = 1.0
        case "killed":
            redis.stop()
        case "full":
            redis.client.config_set("maxmemory", 1)


def pass_by(fault: str, network: Proxy, redis: RedisServer) -> None:
    match fault:
        case "cut":
            network.broken = False
        case "late":
            network.delay = 0.0
        case "killed":
            redis.start()
        case "full":
            redis.client.config_set("maxmemory", 0)


@pytest.mark.parametrize("fault", ["cut", "late", "killed", "full"])
async def test_without_redis_it_goes_on_by_itself_and_comes_back(
    start: StartService, own_redis: RedisServer, model: Upstream, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        proxy(own_redis) as network,
        start(CHAT_REDIS_URL=network.url, CHAT_RATE_LIMIT="6/day") as service,
        start(CHAT_REDIS_URL=own_redis.url) as other,
    ):
        started = (await service.ask("First?", user_id="anna"))[0].started
        happen(fault, network, own_redis)
        session = started.session_id
        for question in ("Second?", "Third?"):
            events = await service.ask(question, user_id="anna", session_id=session)
            assert list(events[-1].completed.degraded) == [types_pb2.COMPONENT_CACHE]
        again = (await service.ask("Third?", user_id="bert"))[-1].completed
        assert not again.cached
        assert (await service.ask("Third?", user_id="carl"))[-1].completed.cached  # its own memory
        report = await service.health.GetHealth(chat_health_pb2.GetHealthRequest())
        assert report.status == chat_health_pb2.GetHealthResponse.STATUS_DEGRADED
        assert "CHAT_REDIS_URL" in redis_health(report).detail
        # The limit goes on from what was known: three of six are used up.
        for number in range(3):
            await service.ask(f"{number}?", user_id="anna")
        assert (await service.fail("One more?", user_id="anna")).reason == "RATE_LIMITED"
        samples = await scrape(service.channel)
        assert samples("chat_grpc_redis_outages_total") == 1
        assert samples("chat_grpc_unshared_messages_total") >= 7
        lost = [line for line in caplog.messages if "redis is out of reach" in line]
        assert len(lost) == (2 if fault == "killed" else 1)  # one of each server that noticed

        pass_by(fault, network, own_redis)
        await until_shared(service)
        await until_shared(other)
        assert any("redis is back" in line for line in caplog.messages)
        # What was said meanwhile is known to the other server, too.
        events = await other.ask("Fourth?", user_id="anna", session_id=session)
        assert list(events[-1].completed.degraded) == []
        asked = [turn["content"] for turn in model.chats[-1].messages if turn["role"] == "user"]
        assert asked == ["First?", "Second?", "Third?", "Fourth?"]


async def test_it_starts_without_redis(start: StartService, own_redis: RedisServer, model: Upstream) -> None:
    own_redis.stop()
    async with start(CHAT_REDIS_URL=own_redis.url) as service:
        events = await service.ask()
        assert list(events[-1].completed.degraded) == [types_pb2.COMPONENT_CACHE]
        own_redis.start()
        await until_shared(service)
        assert list((await service.ask())[-1].completed.degraded) == []


async def test_a_dead_redis_holds_nobody_up(start: StartService, network: Proxy, model: Upstream) -> None:
    async with start(CHAT_REDIS_URL=network.url) as service:
        await service.ask()
        network.delay = 3600.0
        await service.ask("Who waits?")
        asked = script_runs(network)
        for number in range(20):
            await service.ask(f"Who waits {number}?", user_id=f"user{number}")
        assert script_runs(network) == asked


async def written_by_a_dead_server(service: Service, redis: RedisServer) -> tuple[str, bytes]:
    """Put the lease of a server that is gone in the place of an answer; return the answer's name in Redis, and it."""
    await service.ask("How?")
    [answer] = redis.keys("*answer:*")
    written = redis.client.get(answer)
    assert isinstance(written, bytes)
    redis.client.delete(answer)
    key = answer.partition("answer:")[2]
    redis.client.set(f"chat:v1:{{-}}:flight:{key}", "dead:999", px=1500)
    return answer, written


async def waiting_for_a_dead_server(service: Service, redis: RedisServer) -> Client:
    """Ask the same, and return once the service waits for what that server writes."""
    client = Client(service, "How?")
    async with asyncio.timeout(10):
        while not redis.client.exists("chat:v1:{-}:stream:dead:999"):
            await asyncio.sleep(0.01)
    return client


async def test_a_pilot_that_dies_is_taken_over_from(two: tuple[Service, Service], redis: RedisServer) -> None:
    """A server that is gone leaves a lease that nobody renews: here one is put there by hand."""
    one, other = two
    await written_by_a_dead_server(one, redis)
    clients = [Client(service, "How?", user_id=f"user{number}") for number, service in enumerate((one, other))]
    for client in clients:
        assert text_of(await client.finish()) == "Hello there."
    assert sorted(client.events[-1].completed.cached for client in clients) == [False, True]


async def test_what_another_wrote_after_a_pilot_died_is_not_written_again(
    two: tuple[Service, Service], redis: RedisServer, model: Upstream
) -> None:
    answer, written = await written_by_a_dead_server(two[0], redis)
    client = await waiting_for_a_dead_server(two[1], redis)
    redis.client.set(answer, written)  # as a server does that took over, and is done
    assert text_of(await client.finish()) == "Hello there."
    assert client.events[-1].completed.cached
    assert len(model.chats) == 1


async def test_a_pilot_that_dies_in_the_middle_makes_followers_ask_again(
    two: tuple[Service, Service], redis: RedisServer
) -> None:
    await written_by_a_dead_server(two[0], redis)
    client = await waiting_for_a_dead_server(two[1], redis)
    redis.client.xadd("chat:v1:{-}:stream:dead:999", {"t": "half "})
    assert text_of((await client.until_text()).events) == "half "
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.finish()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert b"WRITER_LOST" in dict(caught.value.trailing_metadata() or ())["grpc-status-details-bin"]


async def test_a_flight_outlives_its_first_lease(
    two: tuple[Service, Service], redis: RedisServer, model: Upstream
) -> None:
    model.answer = held = Held()
    pilot = await Client(two[0], user_id="anna").until_text()
    [lease] = redis.keys("*flight:*")
    redis.client.pexpire(lease, 3000)
    await asyncio.sleep(3.5)
    follower = await Client(two[1], user_id="bert").until_text()
    held.go_on.set()
    assert text_of(await follower.finish()) == text_of(await pilot.finish()) == "half whole"
    assert len(model.chats) == 1


async def test_nothing_is_left_behind(two: tuple[Service, Service], redis: RedisServer, model: Upstream) -> None:
    await asyncio.gather(*(service.ask("How?", user_id="anna") for service in two))
    model.answer = saying("cut off", reason=None)
    await two[0].fail("Why?")
    async with asyncio.timeout(5):
        while any(service.parts.conversation.working for service in two) or redis.keys("*flight:*"):
            await asyncio.sleep(0.01)
    endless = [key for key in redis.keys("*") if redis.client.ttl(key) < 0 and not key.endswith(":fence")]
    assert endless == []
