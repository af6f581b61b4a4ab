"""Rates, and the token buckets that hold callers to them.

A bucket holds as many tokens as its rate allows in one unit of time, and fills
evenly: 60/minute lets 60 requests through at once, then one a second. What is
kept of a bucket is one number, the moment at which it is full again (the
generic cell rate algorithm), so that the wait for a token is exact.

It is our own on top of cachetools, because no library fits: `limits` has
windows only and keeps every key it ever saw until a scan of all; `aiolimiter`
has one bucket, without keys, and makes callers wait; `pyrate-limiter` keeps one
object for each key, forever; `throttled-py` comes closest, but can't take from
several buckets all or none, and costs 50 ms to import (300 ms where redis is
installed), a good part of what a start may take.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from cachetools import LRUCache

MAX_KEYS = 50_000
"""Buckets kept for each limit, some 20 MB. Beyond it the one not used for longest is forgotten, and so full again."""

SECOND = 1_000_000_000
"""In nanoseconds: whole numbers, because sums of fractions would let one request too many or too few through."""

UNITS = {"second": SECOND, "minute": 60 * SECOND, "hour": 3_600 * SECOND, "day": 86_400 * SECOND}


@dataclass(frozen=True, slots=True)
class Rate:
    """So many in a unit of time; ``unit`` is one of UNITS."""

    count: int
    unit: str

    @classmethod
    def parse(cls, text: str) -> Rate | None:
        """Read "60/minute", or "60" which means the same; "off" is None.

        Raises:
            ValueError: the text is none of these.
        """
        if text == "off":
            return None
        count, _, unit = text.partition("/")
        rate = cls(int(count), unit or "minute")
        if rate.count < 1 or rate.unit not in UNITS:
            raise ValueError("a rate has the form 60/minute")
        return rate

    def __str__(self) -> str:
        return f"{self.count}/{self.unit}"

    @property
    def interval(self) -> int:
        """Nanoseconds in which one token comes."""
        return UNITS[self.unit] // self.count

    @property
    def burst(self) -> int:
        """Nanoseconds that a bucket may be from being full and still hold a token."""
        return (self.count - 1) * self.interval


@dataclass(frozen=True, slots=True)
class Claim:
    """A token wanted from one bucket: of which limit, of whom, at which rate."""

    limit: str
    key: str
    rate: Rate


@dataclass(frozen=True, slots=True)
class Shortage:
    """A bucket without a token, and the seconds until it has one."""

    claim: Claim
    seconds: float


class TokenBuckets(Protocol):
    """Where the buckets are kept. Replicas that share limits put a shared store behind this."""

    async def take(self, claims: Sequence[Claim]) -> Shortage | None:
        """Take a token for each claim, or none at all: then return the shortage that lasts longest."""
        ...

    async def look(self, claims: Sequence[Claim]) -> Shortage | None:
        """Return what ``take`` would, and take nothing."""
        ...


class MemoryTokenBuckets:
    """Buckets of this process.

    Args:
        max_keys: how many are kept for each limit.
        clock: a monotonic clock in nanoseconds.
    """

    def __init__(self, *, max_keys: int = MAX_KEYS, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._max_keys = max_keys
        self._clock = clock
        # Apart for each limit, so that a flood of addresses pushes out no user.
        self._full_at: dict[str, LRUCache[str, int]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._full_at.values()))

    async def take(self, claims: Sequence[Claim]) -> Shortage | None:
        """Take a token for each claim, or none at all: then return the shortage that lasts longest."""
        now = self._clock()
        shortage = self._shortage(claims, now)
        if shortage is None:
            for claim in claims:
                buckets = self._buckets(claim)
                buckets[claim.key] = max(buckets.get(claim.key, now), now) + claim.rate.interval
        return shortage

    async def look(self, claims: Sequence[Claim]) -> Shortage | None:
        """Return what ``take`` would, and take nothing."""
        return self._shortage(claims, self._clock())

    def learn(self, claim: Claim, ahead: int) -> None:
        """Take over what a shared store says of a bucket: it is full again in so many nanoseconds."""
        self._buckets(claim)[claim.key] = self._clock() + ahead

    def _shortage(self, claims: Sequence[Claim], now: int) -> Shortage | None:
        longest, short = 0, None
        for claim in claims:
            wait = self._buckets(claim).get(claim.key, now) - now - claim.rate.burst
            if wait > longest:
                longest, short = wait, claim
        return Shortage(short, longest / SECOND) if short else None

    def _buckets(self, claim: Claim) -> LRUCache[str, int]:
        buckets = self._full_at.get(claim.limit)
        if buckets is None:
            buckets = self._full_at[claim.limit] = LRUCache(self._max_keys)
        return buckets
