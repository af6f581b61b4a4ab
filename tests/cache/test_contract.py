"""What every cache does, and what the one in Redis does when Redis does not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from chat_grpc.cache import Cache, CachedAnswer
from chat_grpc.cache.memory import MemoryCache
from chat_grpc.cache.redis import RedisCache
from chat_grpc.domain import FinishReason, Usage
from chat_grpc.shared.link import Link
from chat_grpc.shared.names import Names
from tests.support.redis import Proxy, RedisServer

NAMES = Names("")
Open = Callable[[float], AbstractAsyncContextManager[Cache]]


@asynccontextmanager
async def open_memory(ttl: float) -> AsyncIterator[Cache]:
    yield MemoryCache(ttl=ttl, max_bytes=1_000_000)


@asynccontextmanager
async def open_redis(url: str, ttl: float) -> AsyncIterator[RedisCache]:
    link = Link(url, probe=NAMES.probe)
    try:
        yield RedisCache(link, NAMES, ttl=ttl)
    finally:
        await link.close()


@pytest.fixture(params=["memory", "redis"])
def opened(request: pytest.FixtureRequest) -> Open:
    """Open a cache of each kind."""
    if request.param == "memory":
        return open_memory
    url = request.getfixturevalue("redis").url
    return lambda ttl: open_redis(url, ttl)


def answer(text: str = "Yes.", cost: float | None = 0.25) -> CachedAnswer:
    return CachedAnswer(text, "local/model", FinishReason.STOP, Usage(7, 3, 10, cost, estimated=True))


@pytest.mark.parametrize("text", ["Yes.", "Grüße 🙂\n\x00\"'\\", "long " * 50_000], ids=["short", "odd", "long"])
@pytest.mark.parametrize("cost", [None, 0.25])
async def test_what_is_put_is_got(opened: Open, text: str, cost: float | None) -> None:
    async with opened(60) as cache:
        await cache.put("key", answer(text, cost))
        assert await cache.get("key") == answer(text, cost)


async def test_what_was_not_put_is_not_there(opened: Open) -> None:
    async with opened(60) as cache:
        await cache.put("key", answer())
        assert await cache.get("other") is None


async def test_the_latest_counts(opened: Open) -> None:
    async with opened(60) as cache:
        await cache.put("key", answer("old"))
        await cache.put("key", answer("new"))
        assert await cache.get("key") == answer("new")


async def test_answers_grow_old(opened: Open) -> None:
    async with opened(0.1) as cache:
        await cache.put("key", answer())
        assert await cache.get("key") is not None
        await asyncio.sleep(0.15)
        assert await cache.get("key") is None


async def test_of_no_seconds_nothing_is_kept(opened: Open) -> None:
    async with opened(0) as cache:
        await cache.put("key", answer())
        assert await cache.get("key") is None


async def test_many_at_once(opened: Open) -> None:
    async with opened(60) as cache:
        await asyncio.gather(*(cache.put(f"key{number}", answer(str(number))) for number in range(200)))
        found = await asyncio.gather(*(cache.get(f"key{number}") for number in range(200)))
        assert [one.text for one in found if one] == [str(number) for number in range(200)]


async def test_caches_of_one_redis_are_one(redis: RedisServer) -> None:
    async with open_redis(redis.url, 60) as one, open_redis(redis.url, 60) as other:
        await one.put("key", answer())
        assert await other.get("key") == answer()


async def test_names_hold_the_version_and_the_tenant(redis: RedisServer) -> None:
    async with open_redis(redis.url, 60) as cache:
        await cache.put("key", answer())
    assert redis.keys("*answer*") == ["chat:v1:{-}:answer:key"]
    assert Names("acme").answer("key") == "chat:v1:{acme}:answer:key"


async def test_what_another_program_wrote_is_not_there(redis: RedisServer) -> None:
    async with open_redis(redis.url, 60) as cache:
        for foreign in (b"", b"\xff\x00", b"[]", b'{"text": 1}'):
            redis.client.set(NAMES.answer("key"), foreign)
            assert await cache.get("key") is None


@pytest.mark.parametrize("fault", ["cut", "late"])
async def test_a_redis_out_of_reach_is_an_empty_cache(network: Proxy, fault: str) -> None:
    async with open_redis(network.url, 60) as cache:
        await cache.put("key", answer())
        if fault == "cut":
            network.cut()
        else:
            network.delay = 1.0
        async with asyncio.timeout(5):
            assert await cache.get("key") is None
            await cache.put("key", answer("lost"))
        before = len(network.trips)
        for _ in range(100):  # nobody waits any more
            assert await cache.get("key") is None
        assert len(network.trips) == before
        network.broken, network.delay = False, 0.0
        async with asyncio.timeout(10):
            while (found := await cache.get("key")) is None:
                await asyncio.sleep(0.01)
        assert found == answer()


async def test_after_flushall_it_is_empty_and_works(redis: RedisServer) -> None:
    async with open_redis(redis.url, 60) as cache:
        await cache.put("key", answer())
        redis.client.flushall()
        assert await cache.get("key") is None
        await cache.put("key", answer())
        assert await cache.get("key") == answer()


async def test_a_redis_without_memory_keeps_nothing_until_it_has_some(redis: RedisServer) -> None:
    async with open_redis(redis.url, 60) as cache:
        redis.client.config_set("maxmemory", 1)
        try:
            await cache.put("key", answer())
            assert await cache.get("key") is None
        finally:
            redis.client.config_set("maxmemory", 0)
        async with asyncio.timeout(10):
            while await cache.get("key") is None:
                await cache.put("key", answer())
                await asyncio.sleep(0.01)
