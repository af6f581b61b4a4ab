"""Admitting requests: how many a caller may send in a time, and how many streams are open at once."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

from chat_grpc.conversation.limits import Claim, MemoryTokenBuckets, Rate, Shortage, TokenBuckets
from chat_grpc.domain import ChatRequest
from chat_grpc.errors import TooManyRequests

REST_B = "rest_b"
"""ChatRequest.route of the REST API that has a rate of its own."""

CALLERS_BEHIND_AN_ADDRESS = 8
"""An address may be a household's or an office's: where no user is named, it gets the places of so many."""

STREAM_RETRY_SECONDS = 1.0
"""What callers are told to wait for a stream's place: nobody knows when one ends."""


class Admission:
    """Holds callers to their limits. One instance serves all.

    Callers are known by the user that they name, and by their address if they
    name none, and an address may be many people's. Any name can be claimed, so
    an address has a rate of its own.
    None stands for no limit.

    Args:
        user_limit: the rate of one user.
        address_limit: the rate of one address, whatever users it names.
        rest_limit: the rate of one address on REST_B, instead of the two others
            (a user that is named there is held to ``user_limit`` too).
        streams_per_user: how many answers one user may wait for or receive at once.
        streams_total: how many are written at once.
        queue_length: how many further callers may wait for a place, first come, first served.
        queue_seconds: how long each of them waits at most.
        buckets: where rates are counted; by default in this process.
        shared: whether several servers count them together. Then ``enter`` takes no token, and
            refuses only who is known to have none; whoever holds a place sees to the rest.
    """

    def __init__(
        self,
        *,
        user_limit: Rate | None,
        address_limit: Rate | None,
        rest_limit: Rate | None,
        streams_per_user: int,
        streams_total: int,
        queue_length: int,
        queue_seconds: float,
        buckets: TokenBuckets | None = None,
        shared: bool = False,
    ) -> None:
        self._user_limit = user_limit
        self._address_limit = address_limit
        self._rest_limit = rest_limit
        self._streams_per_user = streams_per_user
        self._streams_total = streams_total
        self._queue_length = queue_length
        self._queue_seconds = queue_seconds
        self._buckets = MemoryTokenBuckets() if buckets is None else buckets
        self._shared = shared
        self._places = asyncio.Semaphore(streams_total)
        self._callers: dict[str, int] = {}
        self._open = 0
        self._waiting = 0

    @property
    def streams(self) -> int:
        """How many streams hold a place."""
        return self._open

    @property
    def waiting(self) -> int:
        """How many callers wait for one."""
        return self._waiting

    @property
    def callers(self) -> int:
        """How many different callers these are."""
        return len(self._callers)

    def enter(self, request: ChatRequest) -> Place:
        """Return a block that holds a place for a request's answer. A request that is refused has used up nothing."""
        return Place(self, request)

    async def admit(self, request: ChatRequest) -> tuple[str, Sequence[Claim]]:
        """Take a place, which ``leave`` gives back.

        Returns:
            Who asks, and the tokens that are still to be taken for it; none unless rates are shared.

        Raises:
            TooManyRequests: RATE_LIMITED or TOO_MANY_STREAMS; ``metadata`` names
                the limit and its quota, ``retry_after`` is exact for rates.
        """
        caller = f"user:{request.user_id}" if request.user_id else f"address:{request.address}"
        quota = self._streams_per_user * (1 if request.user_id else CALLERS_BEHIND_AN_ADDRESS)
        held = self._callers.get(caller, 0)
        if held >= quota:
            raise _too_many_streams("user", quota, "answers are under way for this caller")
        self._callers[caller] = held + 1
        try:
            claims = self._claims(request, caller)
            await self._find_place(claims)
        except BaseException:
            self._forget(caller)
            raise
        self._open += 1
        try:
            # Last, so that who found no place has paid nothing.
            if self._shared:
                check(await self._buckets.look(claims))
                return caller, claims
            if claims:
                check(await self._buckets.take(claims))
        except BaseException:
            self.leave(caller)
            raise
        return caller, ()

    def leave(self, caller: str) -> None:
        """Give a place back."""
        self._open -= 1
        self._places.release()
        self._forget(caller)

    def _forget(self, caller: str) -> None:
        held = self._callers[caller] - 1
        if held:
            self._callers[caller] = held
        else:
            del self._callers[caller]

    async def take(self, claims: Sequence[Claim]) -> None:
        """Take tokens of this server's own, while those that are shared are out of reach.

        Raises:
            TooManyRequests: RATE_LIMITED.
        """
        check(await self._buckets.take(claims))

    def _claims(self, request: ChatRequest, caller: str) -> Sequence[Claim]:
        """Return the tokens that a request needs."""
        if request.route == REST_B:
            wanted = [("rest", request.address, self._rest_limit)]
            if request.user_id:
                wanted.append(("user", caller, self._user_limit))
        else:
            wanted = [("address", request.address, self._address_limit)]
            if request.user_id:
                wanted.insert(0, ("user", caller, self._user_limit))
        return [Claim(limit, key, rate) for limit, key, rate in wanted if rate]

    async def _find_place(self, claims: Sequence[Claim]) -> None:
        """Take a place, after a wait if need be."""
        if self._open < self._streams_total and not self._waiting:
            await self._places.acquire()  # at once
            return
        # Who will be refused for a rate need not wait in order to hear it.
        check(await self._buckets.look(claims))
        if self._waiting >= self._queue_length:
            raise _too_many_streams("total", self._streams_total, "answers are under way, and the queue is full")
        self._waiting += 1
        try:
            async with asyncio.timeout(self._queue_seconds):
                await self._places.acquire()
        except TimeoutError:
            raise _too_many_streams(
                "total", self._streams_total, f"answers are under way, and none ended in {self._queue_seconds:g} s"
            ) from None
        finally:
            self._waiting -= 1


class Place:
    """A place for one answer, held by a block; its value is the tokens that are still to be taken.

    A class and no generator: every message passes through it, and a generator takes three times as long.
    """

    __slots__ = ("_admission", "_caller", "_request")

    def __init__(self, admission: Admission, request: ChatRequest) -> None:
        self._admission = admission
        self._request = request
        self._caller = ""

    async def __aenter__(self) -> Sequence[Claim]:
        self._caller, unpaid = await self._admission.admit(self._request)
        return unpaid

    async def __aexit__(self, *_: object) -> None:
        self._admission.leave(self._caller)


def check(shortage: Shortage | None) -> None:
    """Raise TooManyRequests for a bucket that is empty."""
    if shortage is None:
        return
    claim = shortage.claim
    whose = "user" if claim.limit == "user" else "address"
    # Rounded up to milliseconds: who waits exactly this long must find a token.
    seconds = math.ceil(shortage.seconds * 1000) / 1000
    raise TooManyRequests(
        f"more messages than the {claim.rate} that one {whose} may send; try again in {_spoken(seconds)}",
        metadata={"limit": claim.limit, "quota": str(claim.rate)},
        retry_after=seconds,
    )


def _spoken(seconds: float) -> str:
    """Write a wait as people would, never shorter than it is."""
    return f"{math.ceil(seconds)} s" if seconds >= 1 else f"{math.ceil(seconds * 1000)} ms"


def _too_many_streams(scope: str, quota: int, what: str) -> TooManyRequests:
    return TooManyRequests(
        f"{quota} {what}; try again in a moment",
        reason="TOO_MANY_STREAMS",
        metadata={"limit": f"streams_{scope}", "quota": str(quota)},
        retry_after=STREAM_RETRY_SECONDS,
    )
