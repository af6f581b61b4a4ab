"""Limits without a transport: rates, places for streams, the queue, and that no place is ever lost."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import pytest

from chat_grpc.conversation.admission import CALLERS_BEHIND_AN_ADDRESS, REST_B, Admission
from chat_grpc.conversation.limits import SECOND, Claim, MemoryTokenBuckets, Rate
from chat_grpc.domain import ChatRequest
from chat_grpc.errors import Draining, TooManyRequests

MINUTE = Rate(60, "minute")


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 12_345 * SECOND

    def __call__(self) -> int:
        return self.now

    def pass_seconds(self, seconds: float) -> None:
        self.now += round(seconds * SECOND)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def admission(clock: Clock | None = None, **changed: Any) -> Admission:
    """Build one that limits nothing but what is asked for."""
    settings: dict[str, Any] = {
        "user_limit": None,
        "address_limit": None,
        "rest_limit": None,
        "streams_per_user": 1_000,
        "streams_total": 1_000,
        "queue_length": 0,
        "queue_seconds": 10.0,
        "buckets": MemoryTokenBuckets(clock=clock) if clock else None,
    }
    return Admission(**settings | changed)


def request(user_id: str = "", address: str = "192.0.2.1", route: str = "") -> ChatRequest:
    return ChatRequest(message="How?", request_id="r", user_id=user_id, address=address, route=route)


async def passes(limits: Admission, *asked: ChatRequest) -> None:
    for one in asked:
        async with limits.enter(one):
            pass


async def refused(limits: Admission, asked: ChatRequest) -> TooManyRequests:
    with pytest.raises(TooManyRequests) as caught:
        await passes(limits, asked)
    return caught.value


@asynccontextmanager
async def holding(limits: Admission, *asked: ChatRequest) -> AsyncIterator[None]:
    """Hold a place for each of these requests."""
    async with AsyncExitStack() as stack:
        for one in asked:
            await stack.enter_async_context(limits.enter(one))
        yield


async def queued(limits: Admission, count: int) -> None:
    """Wait until so many callers are in the queue."""
    async with asyncio.timeout(10):
        while limits.waiting != count:
            await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("60/minute", Rate(60, "minute")),
        ("5/second", Rate(5, "second")),
        ("100/hour", Rate(100, "hour")),
        ("1/day", Rate(1, "day")),
        ("10", Rate(10, "minute")),
        ("off", None),
    ],
)
def test_rates_are_read(text: str, rate: Rate | None) -> None:
    assert Rate.parse(text) == rate


@pytest.mark.parametrize("text", ["", "fast", "0/minute", "-1/minute", "5/fortnight", "1.5/second"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"form 60/minute|invalid literal"):
        Rate.parse(text)


@pytest.mark.parametrize("rate", [Rate(3, "minute"), Rate(7, "second"), Rate(60, "minute"), Rate(1, "day")], ids=str)
async def test_a_full_bucket_holds_exactly_as_many_tokens_as_the_rate(clock: Clock, rate: Rate) -> None:
    limits = admission(clock, user_limit=rate)
    await passes(limits, *[request("alice")] * rate.count)
    error = await refused(limits, request("alice"))
    assert error.reason == "RATE_LIMITED"
    assert error.metadata == {"limit": "user", "quota": str(rate)}
    assert str(rate) in error.message


@pytest.mark.parametrize("rate", [Rate(3, "minute"), Rate(7, "second"), Rate(1, "day")], ids=str)
async def test_the_wait_that_is_told_is_exact(clock: Clock, rate: Rate) -> None:
    limits = admission(clock, user_limit=rate)
    await passes(limits, *[request("alice")] * rate.count)
    for _ in range(3):
        wait = (await refused(limits, request("alice"))).retry_after
        assert wait is not None
        assert 0 <= wait - rate.interval / SECOND < 0.001
        clock.pass_seconds(wait - 0.001)
        assert (await refused(limits, request("alice"))).retry_after == 0.001
        clock.pass_seconds(0.001)
        await passes(limits, request("alice"))
        # So that the next round begins with an empty bucket to the nanosecond.
        clock.pass_seconds(rate.interval / SECOND - wait)


@pytest.mark.parametrize(
    ("rate", "passed", "words"),
    [(Rate(1, "minute"), 49.199, "11 s"), (Rate(1, "minute"), 59.0, "1 s"), (Rate(5, "second"), 0.0, "200 ms")],
)
async def test_the_wait_is_told_in_whole_seconds_or_milliseconds(
    clock: Clock, rate: Rate, passed: float, words: str
) -> None:
    limits = admission(clock, user_limit=rate)
    await passes(limits, *[request("alice")] * rate.count)
    clock.pass_seconds(passed)
    assert (await refused(limits, request("alice"))).message.endswith(f"; try again in {words}")


async def test_the_wait_shrinks_as_time_passes(clock: Clock) -> None:
    limits = admission(clock, user_limit=Rate(1, "minute"))
    await passes(limits, request("alice"))
    clock.pass_seconds(45)
    assert (await refused(limits, request("alice"))).retry_after == 15


async def test_a_rate_holds_over_a_long_time(clock: Clock) -> None:
    limits = admission(clock, user_limit=Rate(10, "second"))
    passed = 0
    for _ in range(6_000):
        clock.pass_seconds(0.01)
        with suppress(TooManyRequests):
            await passes(limits, request("alice"))
            passed += 1
    assert passed == 10 + 599  # the full bucket, and what came in a minute


async def test_each_user_has_a_bucket_and_who_names_none_has_the_address_s(clock: Clock) -> None:
    limits = admission(clock, user_limit=Rate(1, "minute"), address_limit=Rate(4, "minute"))
    await passes(limits, request("alice"), request("bob"), request(), request(), request(address="192.0.2.2"))
    for again in (request("alice", address="192.0.2.9"), request("bob", address="192.0.2.9")):
        assert (await refused(limits, again)).metadata["limit"] == "user"
    assert (await refused(limits, request())).metadata["limit"] == "address"
    await passes(limits, request(address="192.0.2.2"))
    # A user can't be named so that it is somebody's address.
    await passes(limits, request("address:192.0.2.1", address="192.0.2.3"))


async def test_naming_other_users_does_not_help_beyond_the_rate_of_the_address(clock: Clock) -> None:
    limits = admission(clock, user_limit=MINUTE, address_limit=Rate(5, "minute"))
    await passes(limits, *(request(f"user{number}") for number in range(5)))
    error = await refused(limits, request("user9"))
    assert error.metadata == {"limit": "address", "quota": "5/minute"}
    assert error.retry_after == 12
    await passes(limits, request("user9", address="192.0.2.2"))


async def test_the_rest_route_has_a_rate_of_its_own(clock: Clock) -> None:
    limits = admission(clock, user_limit=Rate(1, "minute"), address_limit=Rate(2, "minute"), rest_limit=Rate(3, "hour"))
    await passes(limits, *[request(route=REST_B)] * 3)
    error = await refused(limits, request(route=REST_B))
    assert error.metadata == {"limit": "rest", "quota": "3/hour"}
    assert error.retry_after == 1200
    # One has not used up the other.
    await passes(limits, request(), request())
    assert (await refused(limits, request())).metadata["limit"] == "address"


async def test_a_request_refused_by_one_limit_takes_no_token_of_another(clock: Clock) -> None:
    limits = admission(clock, user_limit=Rate(2, "minute"), address_limit=Rate(2, "minute"))
    await passes(limits, request("alice", "192.0.2.1"), request("bob", "192.0.2.1"))
    for _ in range(5):
        assert (await refused(limits, request("alice", "192.0.2.1"))).metadata["limit"] == "address"
    await passes(limits, request("alice", "192.0.2.2"))
    for _ in range(5):
        assert (await refused(limits, request("alice", "192.0.2.2"))).metadata["limit"] == "user"
    await passes(limits, request("carol", "192.0.2.2"))


async def test_of_two_shortages_the_longer_one_is_told(clock: Clock) -> None:
    limits = admission(clock, user_limit=Rate(1, "second"), address_limit=Rate(1, "hour"))
    await passes(limits, request("alice"))
    error = await refused(limits, request("alice"))
    assert (error.metadata["limit"], error.retry_after) == ("address", 3600)


async def test_a_request_refused_for_a_place_takes_no_token(clock: Clock) -> None:
    limits = admission(clock, user_limit=Rate(2, "minute"), streams_total=1, queue_length=1, queue_seconds=0.01)
    async with holding(limits, request("alice")):
        for _ in range(5):
            assert (await refused(limits, request("bob"))).metadata["limit"] == "streams_total"
    await passes(limits, request("bob"), request("bob"))


async def test_who_has_no_token_is_told_so_without_a_wait_in_the_queue(clock: Clock) -> None:
    limits = admission(clock, user_limit=Rate(1, "minute"), streams_total=1, queue_length=5, queue_seconds=3600)
    async with holding(limits, request("alice")), asyncio.timeout(10):
        assert (await refused(limits, request("alice"))).metadata["limit"] == "user"


async def test_memory_stays_bounded_whatever_addresses_come_by(clock: Clock) -> None:
    buckets = MemoryTokenBuckets(max_keys=100, clock=clock)
    alice = Claim("user", "alice", Rate(10_000, "day"))
    for number in range(10_000):
        assert await buckets.take([Claim("address", str(number), MINUTE), alice]) is None
    assert len(buckets) == 101
    # The flood of addresses has pushed out addresses, and no user.
    assert await buckets.look([alice]) is not None


async def test_a_user_at_the_cap_is_refused_at_once_and_others_are_not(clock: Clock) -> None:
    limits = admission(clock, user_limit=Rate(3, "minute"), streams_per_user=2, queue_length=10)
    async with holding(limits, request("alice"), request("alice")):
        error = await refused(limits, request("alice"))
        assert error.reason == "TOO_MANY_STREAMS"
        assert error.metadata == {"limit": "streams_user", "quota": "2"}
        assert error.retry_after
        await passes(limits, request("bob"))
    await passes(limits, request("alice"))  # the third token: the refused one took none


async def test_callers_without_a_name_are_capped_by_address() -> None:
    limits = admission(streams_per_user=1)
    async with AsyncExitStack() as places:
        for _ in range(CALLERS_BEHIND_AN_ADDRESS):
            await places.enter_async_context(limits.enter(request()))
        error = await refused(limits, request())
        assert error.metadata == {"limit": "streams_user", "quota": str(CALLERS_BEHIND_AN_ADDRESS)}
        await passes(limits, request(address="192.0.2.2"), request("alice"))


async def test_the_queue_is_first_come_first_served() -> None:
    limits = admission(streams_total=1, queue_length=3)
    order: list[int] = []

    async def caller(number: int) -> None:
        async with limits.enter(request(f"user{number}")):
            order.append(number)

    async with asyncio.TaskGroup() as callers, holding(limits, request("first")):
        for number in range(3):
            callers.create_task(caller(number))
            await queued(limits, number + 1)
        error = await refused(limits, request("late"))
        assert error.reason == "TOO_MANY_STREAMS"
        assert error.metadata == {"limit": "streams_total", "quota": "1"}
        assert order == []
    assert order == [0, 1, 2]
    assert (limits.streams, limits.waiting, limits.callers) == (0, 0, 0)


async def test_nobody_overtakes_the_queue() -> None:
    """A place that has just become free is the first waiter's, even before it has woken."""
    limits = admission(streams_total=1, queue_length=2)
    order: list[str] = []

    async def caller(name: str) -> None:
        async with limits.enter(request(name)):
            order.append(name)

    async with asyncio.TaskGroup() as callers:
        async with holding(limits, request("first")):
            callers.create_task(caller("waited"))
            await queued(limits, 1)
        await caller("overtaker")
    assert order == ["waited", "overtaker"]


async def test_a_wait_in_the_queue_ends() -> None:
    limits = admission(streams_total=1, queue_length=1, queue_seconds=0.02)
    async with holding(limits, request("alice")):
        error = await refused(limits, request("bob"))
        assert error.reason == "TOO_MANY_STREAMS"
        assert error.retry_after
        assert limits.waiting == 0
    await passes(limits, request("bob"))


async def test_a_caller_that_leaves_the_queue_frees_its_place_in_it() -> None:
    limits = admission(streams_total=1, queue_length=1, streams_per_user=1)
    async with holding(limits, request("alice")):
        leaving = asyncio.ensure_future(passes(limits, request("bob")))
        await queued(limits, 1)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        staying = asyncio.ensure_future(passes(limits, request("bob")))
        await queued(limits, 1)
    await staying


async def test_a_drain_that_reaches_a_waiting_caller_is_still_a_drain() -> None:
    limits = admission(streams_total=1, queue_length=1)
    async with holding(limits, request("alice")):
        waiting = asyncio.ensure_future(passes(limits, request("bob")))
        await queued(limits, 1)
        waiting.cancel(Draining.cancel_message)
        with pytest.raises(asyncio.CancelledError) as caught:
            await waiting
        assert caught.value.args == (Draining.cancel_message,)


async def test_an_answer_that_fails_gives_its_place_back() -> None:
    limits = admission(streams_total=1, streams_per_user=1)
    with pytest.raises(ZeroDivisionError):
        async with limits.enter(request("alice")):
            raise ZeroDivisionError
    await passes(limits, request("alice"))


class Crowd:
    """Callers that come, end, fail, and leave at any point, in a random order that a seed repeats."""

    def __init__(self, limits: Admission, seed: int) -> None:
        self._limits = limits
        self._chance = random.Random(seed)  # noqa: S311 (it must be repeatable, not secret)
        self._inside: list[asyncio.Event] = []
        self._running: list[asyncio.Task[None]] = []
        self.ends: Counter[str] = Counter()

    async def step(self) -> None:
        """Let one thing happen."""
        kind = self._chance.random()
        if kind < 0.5:
            self._running.append(asyncio.ensure_future(self._caller(f"user{self._chance.randrange(4)}")))
        elif kind < 0.7 and self._inside:
            self._chance.choice(self._inside).set()
        elif kind < 0.85 and self._running:
            # Possibly one that has just been given a place, or whose wait is just over.
            self._chance.choice(self._running).cancel()
        else:
            await asyncio.sleep(self._chance.choice((0, 0, 0, 0.001)))
            self._running = [task for task in self._running if not task.done()]

    async def leave(self) -> None:
        """Let all leave at once."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _caller(self, user: str) -> None:
        try:
            async with self._limits.enter(request(user)):
                await self._receive()
        except TooManyRequests as error:
            self.ends[error.metadata["limit"]] += 1
        except ZeroDivisionError:
            self.ends["failed"] += 1
        except asyncio.CancelledError:
            self.ends["left"] += 1
        else:
            self.ends["ended"] += 1

    async def _receive(self) -> None:
        end = asyncio.Event()
        self._inside.append(end)
        try:
            await end.wait()
            if self._chance.random() < 0.1:
                raise ZeroDivisionError
        finally:
            self._inside.remove(end)


async def test_no_place_is_lost_or_leaked_whatever_callers_do() -> None:
    limits = admission(
        Clock(),
        user_limit=Rate(400, "minute"),
        streams_per_user=4,
        streams_total=5,
        queue_length=6,
        queue_seconds=0.002,
    )
    crowd = Crowd(limits, seed=20_240_115)
    streams = waiting = 0
    for _ in range(10_000):
        await crowd.step()
        streams, waiting = max(streams, limits.streams), max(waiting, limits.waiting)
    await crowd.leave()
    # Everything that can happen has happened, and the bounds held.
    assert crowd.ends.keys() == {"ended", "failed", "left", "user", "streams_user", "streams_total"}
    assert (streams, waiting) == (5, 6)
    assert (limits.streams, limits.waiting, limits.callers) == (0, 0, 0)
    # And every place is there: five callers get in without a wait, a sixth does not.
    async with holding(limits, *(request(f"new{number}") for number in range(5))):
        assert limits.streams == 5
        assert (await refused(limits, request("one-more"))).metadata["limit"] == "streams_total"
