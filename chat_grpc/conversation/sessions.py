"""Conversations: who holds one, what was said in it last, when it ends."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cachetools import TTLCache

from chat_grpc.domain import Exchange, Status
from chat_grpc.entropy import random_uuid
from chat_grpc.errors import Forbidden, NotFound
from chat_grpc.storage import Scope, Storage

MAX_SESSIONS = 100_000
"""Sessions kept in memory; beyond it the oldest are read from the history again when needed."""


@dataclass(slots=True)
class Session:
    """One conversation of one user (or of nobody named: user_id "").

    ``shared`` tells whether other servers have been told of it, ``digest`` what
    was said in it as they know it: None if that is not what this server knows.
    """

    id: str
    user_id: str
    exchanges: deque[Exchange]
    shared: bool = False
    digest: str | None = ""


class Sessions:
    """The conversations that have not ended.

    They are kept in memory; one that is not there (after a restart, say) is
    read from the history, if its last message is not older than the TTL.

    Args:
        storage: the history.
        ttl: seconds without a message after which a session ends.
        turns: how many exchanges of a session are remembered.
        alone: whether no other process answers in these sessions. If others do (workers), each message of a session
            reads it from the history, as what is in memory may not be all that was said.
    """

    def __init__(self, storage: Storage, *, ttl: float, turns: int, alone: bool = True) -> None:
        self._storage = storage
        self._alone = alone
        self._ttl = timedelta(seconds=ttl)
        self._turns = turns
        self._live: TTLCache[str, Session] = TTLCache(MAX_SESSIONS, ttl, timer=time.monotonic)
        self._forgotten = 0

    def __len__(self) -> int:
        self._live.expire()
        return len(self._live)

    async def open(self, session_id: str, user_id: str) -> Session:
        """Return the session named, or a new one for "", which is to be held once something has been said in it.

        Raises:
            NotFound: there is none of that name, or it has ended.
            Forbidden: it is another user's.
            StorageUnavailable: the history can't be read.
        """
        if not session_id:
            return Session(random_uuid(), user_id, deque(maxlen=self._turns))
        known = session_id.lower()
        session = (self._live.get(known) if self._alone else None) or await self._restore(known)
        if session.user_id != user_id:
            raise foreign()
        self.hold(session)  # and so the TTL begins anew
        return session

    def hold(self, session: Session) -> None:
        """Keep a session until it has ended."""
        self._live[session.id] = session

    def known(self, session_id: str) -> Session | None:
        """Return a session as far as this server knows it."""
        return self._live.get(session_id.lower())

    def adopt(self, session_id: str, user_id: str, digest: str, exchanges: Iterable[Exchange] | None) -> Session:
        """Return a session as other servers know it; ``exchanges`` is None where this one knows the same."""
        known = session_id.lower()
        session = self._live.get(known)
        if session is None or exchanges is not None:
            # Not written into the session that is there: whoever is answering in it has read it already.
            session = Session(known, user_id, deque(exchanges or (), maxlen=self._turns), shared=True, digest=digest)
        self.hold(session)
        return session

    async def restore(self, session_id: str, user_id: str) -> Session:
        """Return a session that other servers do not know, from the history; raises what ``open`` does."""
        self._live.pop(session_id.lower(), None)
        return await self.open(session_id, user_id)

    def forget(self, scope: Scope) -> None:
        """Drop the sessions of a user, or one session, whose messages were deleted."""
        self._forgotten += 1
        if scope.session_id:
            self._live.pop(scope.session_id.lower(), None)
        else:
            for session in [session for session in self._live.values() if session.user_id == scope.user_id]:
                self._live.pop(session.id, None)

    async def _restore(self, session_id: str) -> Session:
        while True:
            forgotten = self._forgotten
            messages = await self._storage.list_messages(Scope(session_id=session_id), limit=max(self._turns, 1))
            if forgotten == self._forgotten:  # else what was read may have been deleted since
                break
        if not messages or datetime.now(UTC) - messages[0].created_at > self._ttl:
            raise NotFound(
                "there is no such session, or it has ended; leave session_id empty to begin a new one",
                reason="SESSION_NOT_FOUND",
            )
        exchanges = (
            Exchange(message.message, message.answer)
            for message in reversed(messages)
            # A completed message with a reason was refused by a guardrail: no model is to be sent it.
            if message.status is Status.COMPLETED and not message.error_reason
        )
        return Session(session_id, messages[0].user_id, deque(exchanges, maxlen=self._turns), digest=None)


def foreign() -> Forbidden:
    """Return what is raised for another user's session."""
    return Forbidden("the session belongs to another user", reason="SESSION_OF_ANOTHER_USER")
