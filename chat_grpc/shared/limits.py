"""Token buckets that all servers take from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from chat_grpc.conversation.limits import SECOND, Claim, MemoryTokenBuckets, Shortage
from chat_grpc.shared import scripts
from chat_grpc.shared.link import Link
from chat_grpc.shared.names import Names


class RedisTokenBuckets:
    """Buckets in Redis, by Redis's clock; see TokenBuckets. Its methods raise NotShared while Redis is out of reach.

    Args:
        link: the way to Redis.
        names: of the buckets.
        known: is told of each bucket that was looked at, so that this server knows what it would be told again.
        clock: nanoseconds, in place of Redis's clock.
    """

    def __init__(
        self,
        link: Link,
        names: Names,
        *,
        known: MemoryTokenBuckets | None = None,
        clock: Callable[[], int] | None = None,
    ) -> None:
        self._link = link
        self._names = names
        self._known = known
        self._clock = clock

    async def take(self, claims: Sequence[Claim]) -> Shortage | None:
        """Take a token for each claim, or none at all: then return the shortage that lasts longest."""
        return await self._ask(claims, write=True)

    async def look(self, claims: Sequence[Claim]) -> Shortage | None:
        """Return what ``take`` would, and take nothing."""
        return await self._ask(claims, write=False)

    async def _ask(self, claims: Sequence[Claim], *, write: bool) -> Shortage | None:
        if not claims:
            return None
        said = await self._link.run(scripts.TAKE, self._names.fence, {**self.asking(claims), "write": write})
        return self.read(claims, *said)

    def asking(self, claims: Sequence[Claim]) -> dict[str, Any]:
        """Return what the scripts are told."""
        asked: dict[str, Any] = {
            "claims": [
                (
                    self._names.limit(claim.limit, str(claim.rate), claim.key),
                    claim.rate.interval,
                    claim.rate.burst,
                )
                for claim in claims
            ]
        }
        if self._clock is not None:
            asked["clock"] = divmod(self._clock(), SECOND)
        return asked

    def read(self, claims: Sequence[Claim], short: int, wait: int, aheads: Sequence[int]) -> Shortage | None:
        """Return what the scripts said."""
        if self._known is not None:
            for claim, ahead in zip(claims, aheads, strict=True):
                self._known.learn(claim, ahead)
        return Shortage(claims[short - 1], wait / SECOND) if short else None
