"""Token buckets in Redis do what those in memory do, to the nanosecond."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest

from chat_grpc.conversation.limits import SECOND, UNITS, Claim, MemoryTokenBuckets, Rate, TokenBuckets
from chat_grpc.shared import NotShared
from chat_grpc.shared.limits import RedisTokenBuckets
from chat_grpc.shared.link import Link
from chat_grpc.shared.names import Names
from tests.support.redis import Proxy, RedisServer

NAMES = Names("")


class Clock:
    """Stands until a test moves it, at a moment that a double can't hold in nanoseconds."""

    def __init__(self) -> None:
        self.now = 1_795_000_000 * SECOND + 123_456_789

    def __call__(self) -> int:
        return self.now


@pytest.fixture
async def link(redis: RedisServer) -> AsyncIterator[Link]:
    link = Link(redis.url, probe=NAMES.probe)
    yield link
    await link.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["memory", "redis"])
def buckets(request: pytest.FixtureRequest, clock: Clock) -> TokenBuckets:
    """Buckets of each kind, by a clock of the test's."""
    if request.param == "memory":
        return MemoryTokenBuckets(clock=clock)
    return RedisTokenBuckets(request.getfixturevalue("link"), NAMES, clock=clock)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("count", [1, 2, 7, 60, 9999])
async def test_as_many_as_the_rate_at_once_and_then_one_after_another(
    buckets: TokenBuckets, clock: Clock, unit: str, count: int
) -> None:
    rate = Rate(count, unit)
    claim = [Claim("user", "anna", rate)]
    for _ in range(min(count, 100)):
        assert await buckets.take(claim) is None
    if count > 100:
        return
    short = await buckets.take(claim)
    assert short is not None
    assert short.claim == claim[0]
    assert short.seconds == rate.interval / SECOND
    clock.now += rate.interval - 1
    assert await buckets.look(claim) is not None
    assert await buckets.take(claim) is not None
    clock.now += 1
    assert await buckets.look(claim) is None
    assert await buckets.take(claim) is None
    assert await buckets.take(claim) is not None


async def test_all_or_none_and_the_longest_wait_is_told(buckets: TokenBuckets) -> None:
    scarce, scarcer, plenty = (
        Claim(name, "anna", Rate(1, unit)) for name, unit in (("a", "second"), ("b", "minute"), ("c", "second"))
    )
    assert await buckets.take([scarce, scarcer]) is None
    short = await buckets.take([plenty, scarce, scarcer])
    assert short is not None
    assert (short.claim, short.seconds) == (scarcer, 60)
    assert await buckets.take([plenty]) is None


async def test_nothing_is_claimed(buckets: TokenBuckets) -> None:
    assert await buckets.take([]) is None


async def test_callers_and_limits_are_apart(buckets: TokenBuckets) -> None:
    rate = Rate(1, "minute")
    for limit, key in (("user", "anna"), ("user", "bert"), ("address", "anna")):
        assert await buckets.take([Claim(limit, key, rate)]) is None
    assert await buckets.take([Claim("user", "anna", rate)]) is not None


async def test_they_agree_on_anything(link: Link, clock: Clock) -> None:
    memory, redis = MemoryTokenBuckets(clock=clock), RedisTokenBuckets(link, NAMES, clock=clock)
    chance = random.Random(5)  # noqa: S311 (the same moves each time)
    rates = [Rate(count, unit) for count in (1, 3, 7, 11) for unit in ("second", "minute")]
    refused = 0
    for _ in range(1_000):
        claims = [Claim(f"l{number}", chance.choice("ab"), rates[number]) for number in chance.sample(range(8), 2)]
        method = "take" if chance.random() < 0.8 else "look"
        one, other = [await getattr(buckets, method)(claims) for buckets in (memory, redis)]
        assert one == other
        refused += one is not None
        clock.now += chance.randrange(SECOND)
    assert 100 < refused < 900


async def test_by_its_own_clock(link: Link) -> None:
    buckets = RedisTokenBuckets(link, NAMES)
    claim = [Claim("user", "anna", Rate(20, "second"))]
    for _ in range(20):
        await buckets.take(claim)
    while (short := await buckets.take(claim)) is None:
        pass
    assert 0 < short.seconds <= 0.05
    await asyncio.sleep(short.seconds)
    assert await buckets.take(claim) is None


async def test_servers_take_from_one_bucket(redis: RedisServer, clock: Clock) -> None:
    links = [Link(redis.url, probe=NAMES.probe) for _ in range(3)]
    claim = [Claim("user", "anna", Rate(500, "minute"))]
    servers = [RedisTokenBuckets(link, NAMES, clock=clock) for link in links]
    try:
        taken = await asyncio.gather(*(server.take(claim) for _ in range(400) for server in servers))
    finally:
        for link in links:
            await link.close()
    assert sum(short is None for short in taken) == 500


async def test_buckets_that_are_full_again_take_no_room(redis: RedisServer, link: Link) -> None:
    await RedisTokenBuckets(link, NAMES).take([Claim("user", "anna", Rate(20, "second"))])
    assert redis.keys("*limit*") == ["chat:v1:{-}:limit:user:20/second:anna"]
    await asyncio.sleep(0.1)
    assert redis.keys("*limit*") == []


async def test_what_a_server_was_told_it_knows_by_itself(link: Link) -> None:
    known = MemoryTokenBuckets()
    claim = [Claim("user", "anna", Rate(2, "hour"))]
    buckets = RedisTokenBuckets(link, NAMES, known=known)
    for _ in range(2):
        assert await known.look(claim) is None
        assert await buckets.take(claim) is None
    short = await known.look(claim)
    assert short is not None
    assert 1790 < short.seconds <= 1800


async def test_out_of_reach(network: Proxy) -> None:
    link = Link(network.url, probe=NAMES.probe)
    network.cut()
    with pytest.raises(NotShared):
        await RedisTokenBuckets(link, NAMES).take([Claim("user", "anna", Rate(1, "minute"))])
    await link.close()
