"""What the servers of one service share, asked once before a model is and told once after.

A server alone shares with nobody and has none of this. One that shares asks
for everything that a message needs in one go, because each question is a
round trip that the caller waits for.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from chat_grpc.cache import CachedAnswer
from chat_grpc.conversation.limits import Claim, Shortage
from chat_grpc.domain import Exchange
from chat_grpc.errors import ChatError, Unavailable
from chat_grpc.storage import Scope

if TYPE_CHECKING:  # flights know nothing of servers
    from chat_grpc.conversation.flight import Flight
    from chat_grpc.conversation.sessions import Session


class NotShared(Exception):
    """What is shared is out of reach: go on with what this server has by itself."""


def writer_lost() -> Unavailable:
    """Return what is raised where the writer of an answer is gone, and what it wrote can't be gone on with."""
    return Unavailable("the server that was writing this answer is gone; ask again", reason="WRITER_LOST")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """Everything that a message needs to know of the others.

    Attributes:
        claims: the tokens it takes.
        session_id: the session it goes on with; "" for a new one.
        user_id: who must hold it.
        known: the digest of what this server knows to have been said in it; None if it knows nothing.
        base: what the answer depends on beside what was said in the session.
        remembers: whether the answer depends on that at all.
        lookup: whether an answer written for another will do.
    """

    claims: Sequence[Claim]
    session_id: str
    user_id: str
    known: str | None
    base: str
    remembers: bool
    lookup: bool


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to write the answer of a key for all servers; ``value`` names the server, and differs each time."""

    key: str
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What the others know of it.

    Attributes:
        shortage: the bucket without a token; then nothing else was asked for.
        known: whether the session is known, or is new; if not, nothing further was asked for.
        foreign: whether it is another user's.
        digest: of what was said in it.
        exchanges: what was said; None if it is what this server knew.
        key: the name that equal requests have in common.
        answer: an answer written for another.
        lease: the right, and the duty, to write the answer.
        writer: whose right that is already; "" if nobody's but this server's.
    """

    shortage: Shortage | None = None
    known: bool = True
    foreign: bool = False
    digest: str = ""
    exchanges: tuple[Exchange, ...] | None = None
    key: str = ""
    answer: CachedAnswer | None = None
    lease: Lease | None = None
    writer: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Closing:
    """What came of a message.

    Attributes:
        session: the session, if something was said in it: ``exchange``, which it holds already.
        exchange: the message and its whole answer.
        key: the answer's.
        answer: the answer that was written, for those who wait for it; None if none was.
        keep: whether it may be given for later requests, too.
        lease: the right to write it, which ends.
        error: why none was written, where that is worth telling.
    """

    session: Session | None = None
    exchange: Exchange | None = None
    key: str = ""
    answer: CachedAnswer | None = None
    keep: bool = False
    lease: Lease | None = None
    error: ChatError | None = None


class SharedState(Protocol):
    """What servers share. Where it says so, methods raise NotShared while that is out of reach."""

    async def take(self, claims: Sequence[Claim]) -> Shortage | None:
        """Take a token for each claim, or none at all; NotShared."""

    async def open(self, asking: Asking) -> Opening:
        """Take the tokens, read the session, look for the answer, and get the right to write it; NotShared.

        One round trip.
        """

    async def close_message(self, closing: Closing) -> None:
        """Tell the others what came of a message; one round trip, and no error."""

    def missed(self, session: Session) -> None:
        """Something was said in a session that the others can't be told of now."""

    def fly(self, lease: Lease, flight: Flight) -> None:
        """Have a flight published, if others ask for it while its lease lasts."""

    def follow(self, key: str, writer: str) -> AsyncGenerator[str | CachedAnswer, None]:
        """Yield the text that another server writes, from its start, and the whole answer at last.

        It ends without one when there is none to wait for, and nothing was yielded.

        Raises:
            ChatError: writing it failed.
            Unavailable: WRITER_LOST, it broke off.
        """

    async def take_over(self, key: str, writer: str) -> Lease | CachedAnswer | str:
        """Get the right to write an answer from a writer who is gone.

        Returns:
            The right; or the answer, if somebody else has got it and has written it since; or who has got it,
            "" if nobody else.
        """

    async def forget(self, scope: Scope) -> None:
        """Drop the sessions of a user, or one session."""

    async def ping(self) -> None:
        """Return if it is in reach; raise Unavailable otherwise."""

    async def leave(self) -> None:
        """Go on with no answer for the sake of other servers: this one is about to end, and answers nobody any more."""

    async def close(self) -> None:
        """Let go of connections, and of all that was promised to others."""
