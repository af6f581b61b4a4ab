"""Having an answer written."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Protocol, TypeAlias

from msgspec import Struct

from chat_grpc.domain import FinishReason, Passage, Usage
from chat_grpc.errors import ModelError
from chat_grpc.lasting import lasting


class Turn(Struct, frozen=True, gc=False):
    """One message of a prompt; ``role`` is OpenAI's: system, user or assistant."""

    role: str
    content: str


class Prompt(Struct, frozen=True, kw_only=True):
    """What a provider is asked to answer.

    ``turns`` is all that a model is sent. ``question`` and ``passages`` repeat
    what it was made from, for the provider that needs no model; ``passages`` is
    None when the memory could not be reached.
    """

    turns: tuple[Turn, ...]
    question: str
    passages: tuple[Passage, ...] | None
    model: str
    max_tokens: int | None = None
    temperature: float | None = None
    deadline: float | None = None
    """The caller's own, in loop time: nothing is begun that can't end before it."""
    kept: asyncio.Future[bool] | None = None
    """The keeping of the message, where that may still be under way."""

    async def may_be_sent(self) -> None:
        """Return once the message is kept: providers get everything ready, and wait for this before they send.

        Raises:
            StorageUnavailable: it can't be kept, and so nobody may be asked.
        """
        if self.kept is not None:
            await lasting(self.kept)  # the keeping goes on for others


class Ending(Struct, frozen=True, gc=False):
    """How a provider's answer ended; ``usage`` is None when it reported none."""

    finish_reason: FinishReason
    usage: Usage | None


Sink: TypeAlias = Callable[[str], Awaitable[None] | None]
"""Takes a piece of text; what it returns, if anything, is to be awaited before the next."""


class Provider(Protocol):
    """Something that writes answers."""

    name: str
    """The first half of a model's full name, such as "openrouter"."""
    default_model: str
    """The model that answers when a request names none."""
    models: frozenset[str]
    """The models that a request may name."""

    def stream(self, prompt: Prompt) -> AsyncGenerator[str | Ending, Sink | None]:
        """Yield the answer's text as it arrives (never an empty str), then its Ending.

        A stream that ends without Ending has not been answered. Closing the
        generator at any point ends the upstream request. Nothing is sent before
        ``prompt.may_be_sent`` has returned.

        Whoever reads may send the generator a sink: a provider that can gives it
        the text that follows right where it arrives, so that no task is woken for
        it, and yields the Ending next. Others go on as they would without.

        Raises:
            ModelError: the provider failed; what was yielded before stands.
        """

    async def open(self) -> None:
        """Get ready for the first answer; called once the server serves. Not calling it only costs time later."""

    async def ping(self) -> None:
        """Return if the provider could be asked now; raise ModelError otherwise."""

    async def close(self) -> None:
        """Let go of connections."""


class Opened(Struct, frozen=True):
    """An answer whose first piece has arrived.

    Attributes:
        model: the full name (provider/model) of the model that writes it.
        fallback: whether another than the first choice writes it.
        first: its first piece.
        rest: what follows, to be closed by whoever has it; it has been begun, and may be sent a sink.
        failed: to be called if ``rest`` raises ModelError.
        succeeded: to be called when ``rest`` has come to its Ending.
    """

    model: str
    fallback: bool
    first: str | Ending
    rest: AsyncGenerator[str | Ending, Sink | None]
    failed: Callable[[ModelError], None]
    succeeded: Callable[[], None]


class Models(Protocol):
    """All providers as one: what a conversation needs of them."""

    name: str
    """The first choice's name."""
    default_model: str
    """The first choice's model."""
    models: frozenset[str]
    """The models that a request may name."""

    def full_name(self, model: str) -> str:
        """Return provider/model for a name that a request may use; "" is the default."""

    async def begin(self, prompt: Prompt) -> Opened:
        """Have an answer begun, by the first choice if it can be.

        What can be tried again, or by another, is tried here and only here:
        once there is text, its model writes it to the end. Cancelling this
        ends the upstream request.

        Raises:
            ModelError: nobody could.
        """

    async def open(self) -> None:
        """Get ready for the first answer; called once the server serves."""

    async def ping(self) -> None:
        """Return if somebody could be asked now; raise ModelError otherwise."""

    async def close(self) -> None:
        """Let go of connections."""
