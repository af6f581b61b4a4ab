"""Answers in Redis, for all servers."""

from __future__ import annotations

import msgspec

from chat_grpc.cache import CachedAnswer
from chat_grpc.shared import NotShared
from chat_grpc.shared.link import Link
from chat_grpc.shared.names import Names


def encode(answer: CachedAnswer) -> str:
    """Return an answer as it is kept: JSON, so that people can read it there."""
    return msgspec.json.encode(answer).decode()


def decode(kept: bytes | None) -> CachedAnswer | None:
    """Return what was kept; None for what this program can't read."""
    if kept is None:
        return None
    try:
        return msgspec.json.decode(kept, type=CachedAnswer)
    except msgspec.DecodeError:
        return None


class RedisCache:
    """Keeps answers for ``ttl`` seconds. How many is Redis's own matter (maxmemory); see Cache."""

    def __init__(self, link: Link, names: Names, *, ttl: float) -> None:
        self._link = link
        self._names = names
        self._milliseconds = round(ttl * 1000)

    async def get(self, key: str) -> CachedAnswer | None:
        """Look it up; see Cache."""
        name = self._names.answer(key)
        try:
            return decode(await self._link.ask(lambda: self._link.redis.get(name)))
        except NotShared:
            return None

    async def put(self, key: str, answer: CachedAnswer) -> None:
        """Keep it; see Cache."""
        if not self._milliseconds:
            return
        name, kept = self._names.answer(key), encode(answer)
        try:
            await self._link.ask(lambda: self._link.redis.set(name, kept, px=self._milliseconds))
        except NotShared:
            return

    async def close(self) -> None:
        """Do nothing: the link is its owner's."""
