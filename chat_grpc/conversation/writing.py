"""Having an answer written: by a model, token by token, or along with an equal request that is being answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

from msgspec.structs import replace

from chat_grpc.cache import Cache, CachedAnswer
from chat_grpc.conversation.answering import Answering
from chat_grpc.conversation.costs import Costs
from chat_grpc.conversation.flight import Flight, Flights
from chat_grpc.conversation.guarding import Guarding
from chat_grpc.conversation.guardrails import Withheld
from chat_grpc.conversation.keeping import Keeper
from chat_grpc.conversation.peers import Peers
from chat_grpc.conversation.tasks import Tasks
from chat_grpc.domain import FinishReason, Part
from chat_grpc.errors import ChatError, ModelBroke, ModelError, StorageUnavailable
from chat_grpc.llm import Ending, Models, Opened, Prompt, Sink
from chat_grpc.telemetry.metrics import Metrics
from chat_grpc.telemetry.tokens import TokenGaps


class Writer:
    """Has answers written. One instance serves all callers.

    Args:
        models: who writes them.
        flights: the answers that are being written.
        cache: where whole ones are put for later requests.
        keeper: what keeps the messages.
        guarding: what watches the answers.
        costs: what they cost.
        peers: the other servers; None where there are none.
        metrics: where it is counted what became of them.
        tasks: those that are not to be broken off.
    """

    def __init__(
        self,
        *,
        models: Models,
        flights: Flights,
        cache: Cache,
        keeper: Keeper,
        guarding: Guarding,
        costs: Costs,
        peers: Peers | None,
        metrics: Metrics,
        tasks: Tasks,
    ) -> None:
        self._models = models
        self._flights = flights
        self._cache = cache
        self._keeper = keeper
        self._guarding = guarding
        self._costs = costs
        self._peers = peers
        self._metrics = metrics
        self._tasks = tasks

    async def write(self, answering: Answering, asked: Prompt) -> None:
        """Have the answer written, or give the one that is being written for an equal request."""
        key, common, peers = answering.key, answering.common, self._peers
        seen = None if answering.request.options.skip_cache else self._flights.get(key)
        if seen is None and peers and common and (cached := await peers.just_written(answering, common)):
            await self._keeper.complete(answering, cached, cached=True)
            return
        writer = common.writer if common else ""
        if seen is not None or writer:
            if answering.kept is None:
                await self._keeper.keep(answering, answering.message)
            answering.say_found()
            # Keeping it took a moment: what was being written may be whole by now, or have failed.
            flight = seen if seen and seen.answer else self._flights.get(key)
            if flight is not None:
                await self._follow(answering, flight)
                return
        if answering.kept is None:
            # The model's request is got ready meanwhile, and not sent before.
            asked = replace(asked, kept=self._keeper.begin(answering, answering.message))
        else:
            answering.say_found()
        with self._flights.begin(key, answering.pieces) as flight:
            answering.flight = flight
            answering.stays_for(lambda: self._abandon(answering, flight, key))
            relayed = await peers.relay(answering, common, writer) if peers and common and writer else None
            written = relayed or await self._generate(answering, flight, asked)
            flight.answer = written
            flight.text.close()
            keep = (
                relayed is None
                and Part.LLM not in answering.degraded
                and written.finish_reason is not FinishReason.CONTENT_FILTER
            )
            if common and common.opening:
                common.written, common.keep = written, keep and bool(common.opening.key)
            if keep:  # here also where it is shared: the others are told later, and this server's readers come at once
                await self._cache.put(key, written)
        if not answering.abandoned:
            await self._keeper.complete(answering, written, cached=relayed is not None)

    async def _follow(self, answering: Answering, flight: Flight) -> None:
        """Give the answer that is being written for an equal request."""
        self._metrics.followed()
        async with aclosing(flight.follow()) as pieces:
            async for piece in pieces:
                answering.say_text(piece)
        assert flight.answer is not None  # noqa: S101 (set before the text was closed)
        await self._guarding.take_over(answering, flight.answer)
        await self._keeper.complete(answering, flight.answer, cached=True)

    def _abandon(self, answering: Answering, flight: Flight, key: str) -> bool:
        """The readers have left: go on if somebody follows, and let nobody begin to follow otherwise."""
        if flight.text.closed:
            return False
        if not flight.followers:
            self._flights.close(key, flight)
            return False
        assert answering.task is not None  # noqa: S101 (this is called from a reader of it)
        flight.abandon(answering.task.cancel)
        self._tasks.track(asyncio.ensure_future(self._keeper.settle_failure(answering, asyncio.CancelledError())))
        return True

    async def _generate(self, answering: Answering, flight: Flight, asked: Prompt) -> CachedAnswer:
        """Have the answer written and passed on as it comes, and return the whole."""
        answering.prompt = asked
        if self._peers is not None:
            self._peers.publish(answering, flight)
        began = time.monotonic()
        try:
            opened = await self._open(answering, asked)
            answering.say_found()  # it may have answered sooner than the reader was told that the message is kept
            ending = await self._pass_on(answering, opened, began)
        except BaseException as error:
            cause = answering.cause(error)
            if not isinstance(cause, StorageUnavailable):  # then no model was asked
                outcome = "failed" if isinstance(cause, ChatError) else "cancelled"
                usage = await self._costs.of_broken_off(answering, cause)
                self._metrics.answer_ended(outcome, _provider(answering.message.model), usage)
            raise
        usage = await self._costs.of_whole(answering, opened, ending)
        self._metrics.answer_ended("completed", _provider(opened.model), usage)
        if answering.guardrail:
            answering.say_text(await self._guarding.ending_of(answering))
        return CachedAnswer(
            text="".join(answering.pieces),
            model=opened.model,
            finish_reason=ending.finish_reason,
            usage=usage,
            guardrail=answering.guardrail,
        )

    async def _open(self, answering: Answering, asked: Prompt) -> Opened:
        """Ask the models, and return the answer that one of them has begun."""
        opened = await self._models.begin(asked)
        if opened.fallback:
            answering.message = replace(answering.message, model=opened.model)
            self._metrics.fallback(_provider(answering.sending.model))
            answering.degraded += (Part.LLM,)
        return opened

    async def _pass_on(self, answering: Answering, opened: Opened, began: float) -> Ending:
        """Give the readers each piece as it comes; ``began`` is when the models were asked."""
        first, ending = opened.first, None
        guard, gaps, first_at = self._guarding.guard_of(answering), TokenGaps(), time.monotonic()
        give = _giver(answering.pass_text, guard.look if guard else None, gaps)
        try:
            async with aclosing(opened.rest) as rest:
                if isinstance(first, str):
                    if (taking := give(first)) is not None:
                        await taking
                    self._metrics.first_token(_provider(opened.model), first_at - began)
                    ending = await _give_rest(rest, give)
                else:
                    ending = first
                if ending is None:
                    raise ModelBroke(
                        "the provider ended without an ending", provider=_provider(opened.model), stage="stream"
                    )
                if guard is not None and (held := guard.end()):
                    answering.say_text(held)
                async for _ in rest:  # to its end, so that its connection can be used again
                    pass
        except ModelError as error:
            opened.failed(error)
            raise
        except Withheld as leak:  # leaving the block above has ended the upstream request
            if leak.before:
                answering.say_text(leak.before)
            self._guarding.withhold(answering, leak.rule)
            ending = Ending(FinishReason.CONTENT_FILTER, None)
        finally:
            self._metrics.merge_gaps(gaps)
        opened.succeeded()
        return ending


async def _give_rest(rest: AsyncGenerator[str | Ending, Sink | None], give: Sink) -> Ending | None:
    """Have the rest of an answer given; return its ending, None if it has none."""
    try:
        # A provider that can gives what follows where it arrives, and yields nothing but the ending.
        while isinstance(piece := await rest.asend(give), str):
            if (taking := give(piece)) is not None:
                await taking
    except StopAsyncIteration:
        return None
    return piece


def _giver(
    pass_text: Callable[[str], Awaitable[None] | None], look: Callable[[str], str] | None, gaps: TokenGaps
) -> Sink:
    """Return what gives the readers a piece of text; what stands in it is paid for every token."""
    clock, note = time.monotonic, gaps.note

    def give(text: str) -> Awaitable[None] | None:
        note(clock())
        if look is not None and not (text := look(text)):
            return None  # all of it is held back
        return pass_text(text)

    return give


def _provider(model: str) -> str:
    """Return the provider of a model's full name."""
    return model.partition("/")[0]
