"""What a message has in common with other servers: asked once before it is answered, and told once after."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from chat_grpc.cache import Cache, CachedAnswer
from chat_grpc.conversation import admission
from chat_grpc.conversation.admission import Admission
from chat_grpc.conversation.answering import Answering, Common, Sending
from chat_grpc.conversation.flight import TENANT, Flight, base_of
from chat_grpc.conversation.guarding import Guarding
from chat_grpc.conversation.limits import Claim
from chat_grpc.conversation.passages import Passages
from chat_grpc.conversation.sessions import Session, Sessions, foreign
from chat_grpc.conversation.tasks import Tasks
from chat_grpc.domain import ChatRequest, Exchange, Retrieved
from chat_grpc.errors import ChatError
from chat_grpc.shared import Asking, Closing, Lease, NotShared, SharedState
from chat_grpc.telemetry.metrics import Metrics


class Peers:
    """The other servers, as a message on its way sees them. One instance serves all callers.

    While they are out of reach, a message goes on with what this server has by itself.

    Args:
        shared: what the servers share.
        sessions: which conversations go on.
        admission: what takes tokens while those that are shared are out of reach.
        passages: where passages are found.
        guarding: what notes that an answer's rest was withheld elsewhere.
        cache: answers that this server wrote itself.
        metrics: where it is counted how often there was nothing to share.
        tasks: those that tell the others, and are not to be broken off.
    """

    def __init__(
        self,
        shared: SharedState,
        *,
        sessions: Sessions,
        admission: Admission,
        passages: Passages,
        guarding: Guarding,
        cache: Cache,
        metrics: Metrics,
        tasks: Tasks,
    ) -> None:
        self._shared = shared
        self._sessions = sessions
        self._admission = admission
        self._passages = passages
        self._guarding = guarding
        self._cache = cache
        self._metrics = metrics
        self._tasks = tasks

    async def pay(self, claims: Sequence[Claim]) -> None:
        """Take tokens that all servers take from, or this one's own while those are out of reach."""
        try:
            shortage = await self._shared.take(claims)
        except NotShared:
            self._metrics.unshared()
            await self._admission.take(claims)
        else:
            admission.check(shortage)

    async def open(
        self, request: ChatRequest, unpaid: Sequence[Claim], sending: Sending, *, refused: bool
    ) -> tuple[Session, Common, asyncio.Task[Retrieved | None] | None]:
        """Return the session, what the other servers know, and the search for passages, which has ended.

        They are asked once for everything, and so not before it is known what the
        answer depends on: the passages. Of a message that is ``refused`` they are
        asked no more than whether it may be sent at all.
        """
        wanted = request.options.retrieval and not refused
        searching = asyncio.ensure_future(self._passages.find(request)) if wanted else None
        try:
            found = await searching if searching else Retrieved((), 0)
            known = self._sessions.known(request.session_id) if request.session_id else None
            asking = Asking(
                claims=unpaid,
                session_id=request.session_id.lower(),
                user_id=request.user_id,
                known=known.digest if known else None,
                base=base_of(
                    request,
                    found.passages if found else None,
                    tenant=TENANT,
                    model=sending.model,
                    max_tokens=sending.max_tokens,
                    setting=f"{sending.budget}\n{sending.system}",
                ),
                remembers=request.history is None,
                lookup=not (request.options.skip_cache or refused),
            )
            try:
                opening = await self._shared.open(asking)
            except NotShared:
                self._metrics.unshared()
                await self._admission.take(unpaid)
                return await self._sessions.open(request.session_id, request.user_id), Common(None), searching
        except BaseException:
            if searching:
                searching.cancel()
            raise
        admission.check(opening.shortage)
        if opening.foreign:
            raise foreign()
        common = Common(opening, lease=opening.lease)
        if not request.session_id:
            return await self._sessions.open("", request.user_id), common, searching
        if opening.known:
            session = self._sessions.adopt(request.session_id, request.user_id, opening.digest, opening.exchanges)
        else:
            session = await self._sessions.restore(request.session_id, request.user_id)
        return session, common, searching

    async def just_written(self, answering: Answering, common: Common) -> CachedAnswer | None:
        """Return the answer that this server wrote, where the others have not been told of it when they were asked."""
        opening = common.opening
        if opening is None or not opening.key or opening.writer or opening.lease:
            return None
        return None if answering.request.options.skip_cache else await self._cache.get(opening.key)

    def publish(self, answering: Answering, flight: Flight) -> None:
        """Have the answer that this server begins to write published, if it has the right to write it for all."""
        if (common := answering.common) and common.lease:
            self._shared.fly(common.lease, flight)

    async def relay(self, answering: Answering, common: Common, writer: str) -> CachedAnswer | None:
        """Give the answer that another server writes; None if it has to be written here.

        Raises:
            ChatError: writing it failed, or broke off when a part of it had been given.
        """
        self._metrics.followed()
        while writer:
            async with aclosing(self._shared.follow(answering.key, writer)) as pieces:
                async for piece in pieces:
                    if isinstance(piece, CachedAnswer):
                        await self._guarding.take_over(answering, piece)
                        return piece
                    answering.say_text(piece)
            taken = await self._shared.take_over(answering.key, writer)
            if isinstance(taken, Lease):
                common.lease = taken
                break
            if isinstance(taken, CachedAnswer):
                answering.say_text(taken.text)
                await self._guarding.take_over(answering, taken)
                return taken
            writer = taken
        return None

    async def share(self, answering: Answering, common: Common, exchange: Exchange) -> None:
        """Tell the other servers what was said, and whoever waits for the answer what it is."""
        if common.opening is None:
            self._shared.missed(answering.session)
            return
        closing = Closing(
            session=answering.session,
            exchange=exchange,
            key=answering.key,
            answer=common.written,
            keep=common.keep,
            lease=common.lease,
        )
        common.lease = None
        # Not to be broken off: the lease has ended for this server.
        await asyncio.shield(self._tasks.track(asyncio.ensure_future(self._shared.close_message(closing))))

    def tell(self, common: Common | None, error: BaseException | None) -> None:
        """Let a lease end that has not ended yet, and tell whoever waits for the answer why there is none."""
        if common is None or common.lease is None:
            return
        closing = Closing(
            key=common.lease.key,
            answer=common.written,
            keep=common.keep,
            lease=common.lease,
            error=error if isinstance(error, ChatError) else None,
        )
        common.lease = None
        self._tasks.track(asyncio.ensure_future(self._shared.close_message(closing)))

    def follow(self, key: str, writer: str) -> AsyncGenerator[str | CachedAnswer, None]:
        """Yield what another server writes; see ``SharedState.follow``."""
        return self._shared.follow(key, writer)
