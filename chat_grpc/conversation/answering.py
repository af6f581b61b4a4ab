"""One message on its way: a task writes the events of its answer, readers follow them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeAlias

from msgspec import Struct

from chat_grpc.cache import CachedAnswer
from chat_grpc.conversation.flight import Flight
from chat_grpc.conversation.log import Log, Place
from chat_grpc.conversation.sessions import Session
from chat_grpc.domain import ChatRequest, Completed, Event, Message, Part, Retrieved, Started, SuggestedQuestion
from chat_grpc.errors import Draining
from chat_grpc.llm import Prompt
from chat_grpc.shared import Lease, Opening

Direct: TypeAlias = Callable[[str], Awaitable[None] | None]
"""Gives a reader a piece of text; what it returns, if anything, is to be awaited before the next."""


class Sending(Struct, frozen=True):
    """What goes to the model whatever is found.

    Attributes:
        model: the full name of the first choice.
        max_tokens: how long the answer may get.
        own: what the service itself tells the model to be.
        system: what the model is told to be, the caller's word included.
        budget: how many tokens the prompt may have.
    """

    model: str
    max_tokens: int
    own: str
    system: str
    budget: int


@dataclass(slots=True)
class Common:
    """What other servers know of a message, and are to be told.

    Attributes:
        opening: what they know; None while they can't be asked.
        lease: the right to write the answer, until they are told that it has ended.
        written: the answer that was written here.
        keep: whether it may be given for later requests.
    """

    opening: Opening | None
    lease: Lease | None = None
    written: CachedAnswer | None = None
    keep: bool = False

    @property
    def writer(self) -> str:
        """Which other server writes the answer; "" if none does."""
        return self.opening.writer if self.opening else ""


def _end_alone() -> bool:
    """Tell that the work ends with the last reader."""
    return False


class Answering:
    """A message that is being answered.

    Attributes:
        request: what was asked.
        session: the conversation it belongs to.
        message: what the history holds of it, as far as this program knows.
        digest: tells it from other requests of the same name.
        sending: what goes to the model whatever is found.
        kept: the keeping of it for the first time, once that has begun.
        found: the passages, from when they are found until the readers are told.
        searching: the task that looks for passages, once that has begun.
        asked: what a model is to be sent, once that is known.
        key: what equal requests have in common, from then on.
        prompt: what a model was sent, once one has been asked.
        pieces: the text so far.
        flight: what others follow the text by, once they can; it keeps the text in ``pieces``.
        degraded: the parts that were missing.
        guardrail: the id of the rule that refused the message or withheld the answer's rest; "" if none did.
        suggested: what may be asked instead, then.
        started: the readers have been told that it is accepted.
        abandoned: its readers have left, and it goes on only for others.
        common: what other servers know of it; None where there are none.
    """

    __slots__ = (
        "_direct",
        "_ended_by",
        "_events",
        "_leave",
        "_place",
        "_readers",
        "abandoned",
        "asked",
        "common",
        "degraded",
        "digest",
        "flight",
        "found",
        "guardrail",
        "kept",
        "key",
        "message",
        "pieces",
        "prompt",
        "request",
        "searching",
        "sending",
        "session",
        "started",
        "suggested",
        "task",
    )

    def __init__(self, request: ChatRequest, session: Session, message: Message, digest: str, sending: Sending) -> None:
        self.request = request
        self.session = session
        self.message = message
        self.digest = digest
        self.sending = sending
        self.kept: asyncio.Future[bool] | None = None
        self.found: Retrieved | None = None
        self.searching: asyncio.Task[Retrieved | None] | None = None
        self.asked: Prompt | None = None
        self.key = ""
        self.prompt: Prompt | None = None
        self.pieces: list[str] = []
        self.flight: Flight | None = None
        self.degraded: tuple[Part, ...] = ()
        self.guardrail = ""
        self.suggested: tuple[SuggestedQuestion, ...] = ()
        self.abandoned = False
        self.started = False
        self.common: Common | None = None
        self.task: asyncio.Task[None] | None = None
        self._events: Log[Event] = Log()
        self._readers = 0
        self._direct: Direct | None = None
        self._place = Place()
        self._ended_by: BaseException | None = None
        self._leave = _end_alone

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Have a task do the work of answering; its end is the end of the events."""
        self.task = task = asyncio.get_running_loop().create_task(self._run(work))
        return task

    async def _run(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except BaseException as error:  # noqa: BLE001 (whatever it is, the readers are told)
            self._events.close(error)
        else:
            self._events.close()
        # It knows this answer: in a circle, all this would stay until the collector comes, and be cold by then.
        self._leave = _end_alone

    def end(self) -> None:
        """Say that all has been said, where no task does the work."""
        self._events.close()

    @property
    def joinable(self) -> bool:
        """Tell whether another reader can still be given the whole of it."""
        return self._readers > 0

    def say(self, event: Event) -> None:
        """Write the next event."""
        self._events.append(event)

    def say_started(self) -> None:
        """Say that the message has been accepted, unless that has been said."""
        if not self.started:
            self.started = True
            message = self.message
            self._events.append(Started(message.id, message.session_id, message.request_id))

    def say_found(self) -> None:
        """Say that the message has been accepted, and what has been found for it, as far as that has not been said."""
        self.say_started()
        if self.found is not None:
            self._events.append(self.found)
            self.found = None

    def say_completed(self, suggested: tuple[SuggestedQuestion, ...]) -> None:
        """Say that the whole answer has been kept, as the message tells by then."""
        message = self.message
        assert message.finish_reason is not None  # noqa: S101 (completed messages have one)
        assert message.usage is not None  # noqa: S101 (and were counted)
        self._events.append(
            Completed(
                message.id,
                message.session_id,
                message.model,
                message.created_at,
                message.finish_reason,
                message.usage,
                cached=message.cached,
                degraded=message.degraded,
                suggested_questions=suggested,
            )
        )

    def say_text(self, text: str) -> None:
        """Write the next piece of text, for readers and followers."""
        if self.flight is None:
            self.pieces.append(text)
        else:
            self.flight.text.append(text)
        self._events.append(text)

    def pass_text(self, text: str) -> Awaitable[None] | None:
        """Write the next piece of text, and hand it to the reader right here if that is the only one and waits for it.

        So the usual token, with one reader who has read all there is, needs no
        other task to wake up. Only where nobody follows: a reader who does not
        take it holds the work up, for as long as what is returned (if anything)
        takes to be awaited, and with it those who would follow.
        """
        direct, flight = self._direct, self.flight
        if (
            direct is None
            or self._place.waiting is None
            or self._readers != 1
            or (flight is not None and flight.followers)
        ):
            self.say_text(text)
            return None
        self._events.append_read(text)
        self.pieces.append(text)
        try:
            taking = direct(text)
        except Exception:  # noqa: BLE001 (whatever it was, the reader can't be reached, and is about to hear of it)
            self._direct = None
            return None
        return None if taking is None else self._taken(taking)

    async def _taken(self, taking: Awaitable[None]) -> None:
        if self.flight is not None:
            self.flight.handing_since = time.monotonic()
        try:
            await taking
        except Exception:  # noqa: BLE001 (see pass_text)
            self._direct = None
        if self.flight is not None:
            self.flight.handing_since = None

    def stays_for(self, others: Callable[[], bool]) -> None:
        """Ask ``others`` when the last reader leaves: True keeps the work going without readers."""
        self._leave = others

    async def read(self, direct: Direct | None = None) -> AsyncGenerator[Event, None]:
        """Yield all events from the first one on; text that came meanwhile comes as one piece.

        The last reader to leave ends the answer. ``direct`` may be called with
        pieces of text in place of yielding them, while this waits.

        Raises:
            ChatError: the answer failed.
        """
        self._readers += 1
        place = Place()
        if self._readers == 1 and direct is not None:
            self._direct, self._place = direct, place
        try:
            while events := await self._events.more(place):
                text = ""
                for event in events:
                    if isinstance(event, str):
                        text += event
                        continue
                    if text:
                        yield text
                        text = ""
                    yield event
                if text:
                    yield text
        except BaseException as error:
            fault = Draining() if Draining.ended(error) else error
            self._left(fault)
            if fault is not error:
                raise fault from None
            raise
        else:
            self._left(None)

    def _left(self, fault: BaseException | None) -> None:
        self._readers -= 1
        self._direct = None  # whose it was is not known any more
        if self._readers or self._events.closed or self.task is None:
            return
        self._ended_by = fault
        if self._leave():
            self.abandoned = True
        else:
            self.task.cancel()

    def cause(self, error: BaseException) -> BaseException:
        """Return why the work really ended: for a cancellation, what made the last reader leave."""
        if isinstance(error, asyncio.CancelledError) and self._ended_by is not None:
            return self._ended_by
        return error
