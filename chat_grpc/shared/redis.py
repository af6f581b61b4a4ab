"""What servers share, in Redis."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from chat_grpc.cache import CachedAnswer
from chat_grpc.cache.redis import RedisCache, decode, encode
from chat_grpc.conversation.limits import Claim, MemoryTokenBuckets, Shortage
from chat_grpc.domain import Exchange
from chat_grpc.errors import Unavailable
from chat_grpc.shared import Asking, Closing, Lease, NotShared, Opening, scripts
from chat_grpc.shared.flights import GONE, Published, encode_error, follow
from chat_grpc.shared.limits import RedisTokenBuckets
from chat_grpc.shared.link import Link
from chat_grpc.shared.names import Names
from chat_grpc.storage import Scope

if TYPE_CHECKING:  # see chat_grpc.shared
    from chat_grpc.conversation.flight import Flight
    from chat_grpc.conversation.sessions import Session

LEASE_SECONDS = 5.0
"""How long others wait for a server that died while it wrote; one that lives renews its leases three times as often."""
MISSED = 10_000
"""Sessions that are remembered to have gone on during an outage."""


class RedisState:
    """See SharedState.

    Args:
        url: where Redis is.
        tenant: whose state this is.
        known: the buckets of this server, which are kept up to date.
        answer_seconds: how long answers are kept; 0 keeps none.
        session_seconds: how long sessions are.
        session_turns: how many exchanges of one are remembered.
        outage: called at the beginning of each outage.
        lease_seconds: how long others wait for a server that died while it wrote.
    """

    def __init__(
        self,
        url: str,
        *,
        tenant: str,
        known: MemoryTokenBuckets,
        answer_seconds: float,
        session_seconds: float,
        session_turns: int,
        outage: Callable[[], None] = lambda: None,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        self.server = secrets.token_hex(8)
        """What the others call this one."""
        self._names = Names(tenant)
        self._link = Link(url, probe=self._names.probe, outage=outage)
        self._link.recover = self._recover
        self._buckets = RedisTokenBuckets(self._link, self._names, known=known)
        self._answers = RedisCache(self._link, self._names, ttl=answer_seconds)
        self._answer_ms = round(answer_seconds * 1000)
        self._turns = session_turns
        self._lease_seconds = lease_seconds
        self._times = {"ttl_ms": round(session_seconds * 1000), "lease_ms": round(lease_seconds * 1000)}
        self._published = Published(self._link, self._names, self.server, lease_seconds=lease_seconds)
        self._writing = {
            **self._times,
            **self._published.times,
            "server": self.server,
            "flight": self._names.flight(""),
            "stream": self._names.stream(""),
            "wanted": self._names.wanted(""),
            "inbox": self._names.inbox(""),
        }
        """What a script is told that gives a lease."""
        self._missed: set[str] = set()
        self._missed_users: set[str] = set()

    async def open_link(self) -> None:
        """Connect, and begin to listen to the others. A Redis that is not there is tried again and again."""
        await self._link.open()
        self._published.start()

    async def take(self, claims: Sequence[Claim]) -> Shortage | None:
        """See SharedState."""
        return await self._buckets.take(claims)

    async def open(self, asking: Asking) -> Opening:
        """See SharedState."""
        names = self._names
        args: dict[str, Any] = {
            **self._buckets.asking(asking.claims),
            **self._writing,
            "base": asking.base,
            "remembers": asking.remembers,
            "lookup": asking.lookup,
            "answer": names.answer(""),
        }
        if asking.session_id:
            args |= {
                "session": names.session(asking.session_id),
                "said": names.said(asking.session_id),
                "user": asking.user_id,
                "known": "?" if asking.known is None else asking.known,
            }
        status, short, wait, aheads, *rest = await self._link.run(scripts.OPEN, names.fence, args)
        shortage = self._buckets.read(asking.claims, short, wait, aheads)
        if status != b"open":
            return Opening(shortage=shortage, known=False, foreign=status == b"foreign")
        digest, said, key, answer, lease, writer = rest
        return Opening(
            digest=digest.decode(),
            exchanges=None if said is None else _exchanges(said),
            key=key.decode(),
            answer=decode(answer),
            lease=self._hold(key.decode(), lease) if lease else None,
            writer=self._other(writer),
        )

    async def close_message(self, closing: Closing) -> None:
        """See SharedState."""
        args: dict[str, Any] = {**self._times, **self._published.times}
        if closing.answer is not None and closing.keep and closing.key and self._answer_ms:
            args |= {
                "answer": self._names.answer(closing.key),
                "text": encode(closing.answer),
                "answer_ms": self._answer_ms,
            }
        if closing.lease is not None:
            self._published.release(closing.lease)
            args |= {
                "lease": closing.lease.value,
                "flight": self._names.flight(closing.lease.key),
                "stream": self._names.stream(closing.lease.value),
                **_ending(closing),
            }
        session = closing.session
        if session is not None and closing.exchange is not None:
            args |= self._going_on(session, closing.exchange)
        elif closing.lease is None and "answer" not in args:
            return  # nothing to tell
        try:
            before, after = await self._link.run(scripts.CLOSE, self._names.fence, args)
        except NotShared:
            if session is not None:
                self.missed(session)
            return
        if session is not None:
            # Where others have said something meanwhile, this server does not know all, and has to be told.
            knew_all = after is not None and (before is None or before.decode() == session.digest)
            session.digest = after.decode() if knew_all else None
            session.shared = after is not None

    def _going_on(self, session: Session, exchange: Exchange) -> dict[str, Any]:
        # What is to be kept if nothing is there yet.
        whole = False if session.shared else [_kept(said) for said in session.exchanges]
        return {
            "session": self._names.session(session.id),
            "said": self._names.said(session.id),
            "id": session.id,
            "user": session.user_id,
            "index": self._names.sessions_of(session.user_id) if session.user_id else False,
            "exchange": _kept(exchange),
            "whole": whole,
            "turns": self._turns,
        }

    def missed(self, session: Session) -> None:
        """See SharedState. What Redis holds of the session is out of date, and is dropped when it is back."""
        session.digest, session.shared = None, False
        if len(self._missed) < MISSED:
            self._missed.add(session.id)

    def fly(self, lease: Lease, flight: Flight) -> None:
        """See SharedState."""
        self._published.fly(lease, flight)

    def follow(self, key: str, writer: str) -> AsyncGenerator[str | CachedAnswer, None]:
        """See SharedState."""
        return follow(self._link, self._names, key, writer)

    async def take_over(self, key: str, writer: str) -> Lease | CachedAnswer | str:
        """See SharedState."""
        args = {**self._writing, "key": key, "answer": self._names.answer(key)}
        try:
            held, other, *written = await self._link.run(scripts.TAKE_OVER, self._names.fence, args)
        except NotShared:
            return ""
        if written and (answer := decode(written[0])) is not None:
            return answer
        if not held:
            return self._other(other, writer)
        return self._hold(key, held)

    def _hold(self, key: str, value: bytes) -> Lease:
        lease = Lease(key, value.decode())
        self._published.hold(lease)
        return lease

    def _other(self, value: bytes, but: str = "") -> str:
        """Return whose a lease is, "" if it is this server's."""
        other = value.decode()
        return "" if other == but or other.startswith(f"{self.server}:") else other

    async def forget(self, scope: Scope) -> None:
        """See SharedState. What can't be dropped now is dropped when Redis is back."""
        sessions = {scope.session_id.lower()} - {""}
        users = {scope.user_id} - {""}
        try:
            await self._drop(sessions, users)
        except NotShared:
            self._missed |= sessions
            self._missed_users |= users

    async def ping(self) -> None:
        """See SharedState."""
        if not self._link.up:
            raise Unavailable(
                "Redis is out of reach: this server's limits, sessions and answers are its own; check CHAT_REDIS_URL"
            )

    async def leave(self) -> None:
        """See SharedState."""
        self._published.stop()

    async def close(self) -> None:
        """See SharedState."""
        await self._published.close()
        await self._link.close()

    async def _recover(self) -> None:
        """Drop what went on without Redis, so that it is read from the history."""
        sessions, users = set(self._missed), set(self._missed_users)
        if sessions or users:
            await self._drop(sessions, users, probing=True)
            self._missed -= sessions
            self._missed_users -= users

    async def _drop(self, sessions: set[str], users: set[str], *, probing: bool = False) -> None:
        args = {
            "session": self._names.session(""),
            "said": self._names.said(""),
            "sessions": sorted(sessions),
            "indexes": [self._names.sessions_of(user) for user in sorted(users)],
        }
        await self._link.run(scripts.FORGET, self._names.fence, args, probing=probing)


def _ending(closing: Closing) -> dict[str, Any]:
    """Return what those are told who wait for the answer."""
    if closing.answer is not None:
        return {"ending": "d", "told": encode(closing.answer)}
    if closing.error is not None:
        return {"ending": "f", "told": encode_error(closing.error)}
    return {"ending": GONE, "told": ""}


def _kept(exchange: Exchange) -> str:
    return msgspec.json.encode((exchange.message, exchange.answer)).decode()


def _exchanges(said: Sequence[bytes]) -> tuple[Exchange, ...]:
    return tuple(Exchange(*msgspec.json.decode(kept, type=tuple[str, str])) for kept in said)
