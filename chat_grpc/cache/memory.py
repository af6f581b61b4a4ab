"""Answers in this process's memory."""

from __future__ import annotations

import time

from cachetools import TTLCache

from chat_grpc.cache import CachedAnswer

OVERHEAD = 500
"""Bytes that an answer takes beside its text, about."""


class MemoryCache:
    """Keeps answers for ``ttl`` seconds, and no more than ``max_bytes`` of them; the oldest go first."""

    def __init__(self, *, ttl: float, max_bytes: int) -> None:
        self._answers: TTLCache[str, CachedAnswer] = TTLCache(max_bytes, ttl, timer=time.monotonic, getsizeof=_size)

    async def get(self, key: str) -> CachedAnswer | None:
        """Look it up; see Cache."""
        answers = self._answers
        return answers.get(key) if key in answers else None  # a miss, the usual thing, costs less so

    async def put(self, key: str, answer: CachedAnswer) -> None:
        """Keep it, unless it is larger than everything together may be; see Cache."""
        if _size(answer) <= self._answers.maxsize:
            self._answers[key] = answer

    async def close(self) -> None:
        """Do nothing: there is nothing to close."""


def _size(answer: CachedAnswer) -> int:
    return len(answer.text.encode()) + OVERHEAD
