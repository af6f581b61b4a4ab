"""Keeping a message: as pending before a model is asked, and settled whatever happens."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from datetime import UTC, datetime
from functools import partial
from typing import TypeVar

from msgspec.structs import replace

from chat_grpc.cache import CachedAnswer
from chat_grpc.conversation.answering import Answering
from chat_grpc.conversation.costs import Costs
from chat_grpc.conversation.guardrails.table import reason_of
from chat_grpc.conversation.peers import Peers
from chat_grpc.conversation.sessions import Sessions
from chat_grpc.conversation.tasks import Tasks
from chat_grpc.domain import Exchange, Message, Status
from chat_grpc.errors import ChatError
from chat_grpc.lasting import lasting
from chat_grpc.storage import Storage
from chat_grpc.telemetry import logs
from chat_grpc.telemetry.metrics import Metrics

T = TypeVar("T")

log = logs.get(__name__)


class Keeper:
    """Keeps messages, and says so to their readers. One instance serves all callers.

    Args:
        storage: where messages are kept.
        sessions: which conversations go on.
        costs: what an answer that was broken off has cost.
        peers: the other servers, which are told what was said; None where there are none.
        metrics: where it is counted how messages ended.
        tasks: those that keep, and are not to be broken off.
    """

    def __init__(
        self,
        *,
        storage: Storage,
        sessions: Sessions,
        costs: Costs,
        peers: Peers | None,
        metrics: Metrics,
        tasks: Tasks,
    ) -> None:
        self._storage = storage
        self._sessions = sessions
        self._costs = costs
        self._peers = peers
        self._metrics = metrics
        self._tasks = tasks

    async def keep(self, answering: Answering, message: Message) -> bool:
        """Keep the message for the first time, and say that it has been accepted; False if one of its name is kept."""
        return await lasting(self.begin(answering, message))

    def begin(self, answering: Answering, message: Message) -> asyncio.Future[bool]:
        """Begin to keep the message for the first time; what is returned tells what ``keep`` does."""
        # Not to be broken off: whoever settles the message has to know whether it is there.
        answering.kept = kept = self._tasks.track(_future(self._storage.add(message)))
        # Added a turn later, it comes after whoever awaits this now: the model's request leaves before the readers hear.
        asyncio.get_running_loop().call_soon(kept.add_done_callback, partial(self._say_kept, answering))
        return kept

    def _say_kept(self, answering: Answering, kept: asyncio.Future[bool]) -> None:
        """Say that the message has been accepted, and what has been found for it by then."""
        if kept.cancelled() or kept.exception() is not None or not kept.result():
            return
        answering.say_found()
        if not answering.request.session_id:  # a new one; its readers have been woken, and go first
            asyncio.get_running_loop().call_soon(self._sessions.hold, answering.session)

    async def complete(self, answering: Answering, answer: CachedAnswer, *, cached: bool) -> None:
        """Keep the whole answer, then say that it is complete."""
        settled = replace(
            answering.message,
            status=Status.COMPLETED,
            answer=answer.text,
            model=answer.model,
            finish_reason=answer.finish_reason,
            error_reason=reason_of(answering.guardrail) if answering.guardrail else "",
            # An answer that was written for somebody else is not paid for again.
            usage=replace(answer.usage, cost_usd=0.0) if cached else answer.usage,
            completed_at=datetime.now(UTC),
            cached=cached,
            degraded=answering.degraded,
        )
        at_once = answering.found is not None
        if answering.kept is None:  # nothing had to be asked for it
            await self.keep(answering, settled)
        else:
            await lasting(self._tasks.track(_future(self._storage.settle(settled))))
        answering.message = settled
        self._metrics.message_ended(settled.status)
        if not answering.guardrail:  # else a model would be sent it with the next message
            exchange = Exchange(settled.message, settled.answer)
            answering.session.exchanges.append(exchange)
            if self._peers is not None and answering.common is not None:
                await self._peers.share(answering, answering.common, exchange)
        if at_once:
            answering.say_found()
            answering.say_text(answer.text)
        answering.say_completed(answering.suggested)

    async def settle_failure(self, answering: Answering, error: BaseException) -> None:
        """Keep how a message ended that was not completed."""
        if isinstance(error, asyncio.CancelledError | GeneratorExit):
            status, reason = Status.CANCELLED, "CANCELLED"
        else:
            status = Status.PARTIAL if answering.pieces else Status.FAILED
            reason = error.reason if isinstance(error, ChatError) else "INTERNAL"
        answering.message = replace(
            answering.message,
            status=status,
            answer="".join(answering.pieces),
            error_reason=reason,
            usage=await self._costs.of_broken_off(answering, error),
            completed_at=datetime.now(UTC),
            degraded=answering.degraded,
        )
        await asyncio.shield(self._tasks.track(asyncio.ensure_future(self._settle_kept(answering))))

    async def _settle_kept(self, answering: Answering) -> None:
        """Keep the end of a message, unless it is one that is kept already."""
        message = answering.message
        try:
            if answering.kept is None:
                await self._storage.add(message)
            elif await answering.kept:
                await self._storage.settle(message)
            else:
                return
        except ChatError as fault:
            # The error that ended the message is what the caller must hear of.
            log.warning("the end of a message could not be kept", message_id=message.id, reason=fault.reason)
        else:
            log.info("not answered", message_id=message.id, status=message.status, reason=message.error_reason)
            self._metrics.message_ended(message.status)


def _future(work: Awaitable[T]) -> asyncio.Future[T]:
    """Return what may be a future already; asyncio.ensure_future takes three calls to find that out."""
    return work if isinstance(work, asyncio.Future) else asyncio.ensure_future(work)
