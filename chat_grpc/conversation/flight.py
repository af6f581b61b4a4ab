"""Single flight: equal requests that are answered at the same time share one answer of the model."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

import msgspec

from chat_grpc.cache import CachedAnswer
from chat_grpc.conversation.log import Log, Place
from chat_grpc.domain import ChatRequest, Passage
from chat_grpc.llm import Prompt

HELD_UP_SECONDS = 0.1
"""Handing over a piece of text takes a fraction of a millisecond, unless the reader's window is full."""

KEY_VERSION = 1
"""Changes whenever the meaning of a key does, so that no answer of an older program is found."""

KEY_SIZE = 32
"""Bytes of a key. BLAKE2b, as it is no slower than SHA-256 and Python's own: OpenSSL's takes longer to be begun."""

TENANT = ""
"""Whose answers are shared: everybody's, as long as there is one tenant."""


def key_of(prompt: Prompt, *, tenant: str, model: str) -> str:
    """Return the name that equal requests have in common.

    Everything that can change an answer goes into it: whose answers these are
    (the tenant), the model by its full name and its parameters, and all that the model is sent,
    which holds the system prompt, the passages, the session's history and the
    message.
    """
    parts = (
        KEY_VERSION,
        tenant,
        model,
        prompt.max_tokens,
        prompt.temperature,
        prompt.passages is None,
        [(turn.role, turn.content) for turn in prompt.turns],
    )
    return hashlib.blake2b(msgspec.json.encode(parts), digest_size=KEY_SIZE).hexdigest()


def base_of(
    request: ChatRequest,
    passages: tuple[Passage, ...] | None,
    *,
    tenant: str,
    model: str,
    max_tokens: int,
    setting: str,
) -> str:
    """Return the part of a request's name that does not depend on what was said in its session.

    The whole name is known only to whoever knows that, which may be another
    server. ``setting`` is everything else that the model's prompt is made by.
    """
    parts = (
        KEY_VERSION,
        tenant,
        model,
        max_tokens,
        request.options.temperature,
        setting,
        None if passages is None else [(passage.title, passage.snippet) for passage in passages],
        request.history,
        request.message,
    )
    return hashlib.blake2b(msgspec.json.encode(parts), digest_size=KEY_SIZE).hexdigest()


class Flight:
    """One answer of the model, on its way to whoever asked for it.

    The request that began it is its pilot; equal ones that came later follow.

    Args:
        pieces: the pilot's text so far; while nobody follows, writing into it is all that a piece of text takes.
    """

    __slots__ = ("_on_empty", "answer", "followers", "handing_since", "text")

    def __init__(self, pieces: list[str]) -> None:
        self.text: Log[str] = Log(pieces)
        self.answer: CachedAnswer | None = None
        """The whole answer, once the model has ended."""
        self.handing_since: float | None = None
        """Since when (time.monotonic()) the pilot's reader is handed a piece of text, which holds everything up."""
        self.followers = 0
        self._on_empty: Callable[[], object] | None = None

    @property
    def held_up(self) -> bool:
        """Tell whether a reader who takes nothing holds it up."""
        return self.handing_since is not None and time.monotonic() - self.handing_since > HELD_UP_SECONDS

    def abandon(self, on_empty: Callable[[], object]) -> None:
        """The pilot's reader has left: call ``on_empty`` when the last follower has, too."""
        self._on_empty = on_empty

    async def follow(self) -> AsyncGenerator[str, None]:
        """Yield the text from its start.

        Raises:
            ChatError: the model failed; everyone on the flight hears of it.
        """
        with self._following():
            place = Place()
            while pieces := await self.text.more(place):
                yield "".join(pieces)

    @contextmanager
    def _following(self) -> Iterator[None]:
        self.followers += 1
        try:
            yield
        finally:
            self.followers -= 1
            if not self.followers and self._on_empty is not None and not self.text.closed:
                self._on_empty()


class Flights:
    """The answers that are being written, by key."""

    def __init__(self) -> None:
        self._flying: dict[str, Flight] = {}

    def __len__(self) -> int:
        return len(self._flying)

    def get(self, key: str) -> Flight | None:
        """Return the flight that a request of this key can follow: not one that a reader who takes nothing holds up."""
        flight = self._flying.get(key)
        return None if flight is None or flight.held_up else flight

    def begin(self, key: str, pieces: list[str]) -> Takeoff:
        """Begin one that others can follow, until the end of the block; a newer one of the key takes its place."""
        flight = self._flying[key] = Flight(pieces)
        return Takeoff(self, key, flight)

    def close(self, key: str, flight: Flight) -> None:
        """Let nobody follow it from now on."""
        if self._flying.get(key) is flight:
            del self._flying[key]


class Takeoff:
    """A flight that others can follow until the end of a block, whose value it is.

    A class and no generator: every message passes through it, and a generator takes three times as long.
    """

    __slots__ = ("_flight", "_flights", "_key")

    def __init__(self, flights: Flights, key: str, flight: Flight) -> None:
        self._flights = flights
        self._key = key
        self._flight = flight

    def __enter__(self) -> Flight:
        return self._flight

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._flight.text.close(error)
        self._flights.close(self._key, self._flight)
