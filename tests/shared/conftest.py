"""Servers that share a Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.support.redis import Proxy, RedisServer, proxy, running_redis


@pytest.fixture(scope="session")
def redis_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A redis-server for all tests that leave it as it is."""
    with running_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis(redis_process: RedisServer) -> RedisServer:
    """An empty redis-server."""
    redis_process.client.flushall()
    return redis_process


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A redis-server that a test may stop."""
    with running_redis(tmp_path) as server:
        yield server


@pytest.fixture
async def network(redis: RedisServer) -> AsyncIterator[Proxy]:
    """A network before ``redis``."""
    async with proxy(redis) as running:
        yield running


def script_runs(network: Proxy) -> int:
    """Return how many scripts servers had Redis run: a round trip each."""
    return sum(b"EVALSHA" in sent for sent in network.trips)


def other_questions(network: Proxy) -> list[bytes]:
    """Return what else they sent, beside what a connection begins with, and beside waiting for others."""
    quiet = (b"EVALSHA", b"BLPOP", b"CLIENT", b"HELLO", b"SELECT")
    return [sent for sent in network.trips if not any(word in sent for word in quiet)]
