"""The words that every part of the service speaks, free of transport and of storage.

They are msgspec's structs, which are made ten times as fast as frozen
dataclasses, and copied with a change (``msgspec.structs.replace``) forty times
as fast: every message is, several times on its way. The garbage collector need
not look at them (``gc=False``): nothing that they hold can hold them.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum

from msgspec import Struct, field


class FinishReason(StrEnum):
    """Why a model stopped. The values are OpenAI's."""

    STOP = "stop"
    LENGTH = "length"
    CONTENT_FILTER = "content_filter"


class Part(StrEnum):
    """A part of the service that may be missing."""

    RETRIEVAL = "retrieval"
    LLM = "llm"
    STORAGE = "storage"
    CACHE = "cache"


class Status(StrEnum):
    """How a message ended (chat.v1.Message.Status says what each one means)."""

    PENDING = "pending"
    COMPLETED = "completed"
    PARTIAL = "partial"
    CANCELLED = "cancelled"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


class Identity(Struct, frozen=True, gc=False):
    """Who calls, as a credential has shown, and what its bearer may do beyond everybody's own affairs."""

    user_id: str
    scopes: frozenset[str] = frozenset()


class Passage(Struct, frozen=True, gc=False):
    """A piece of the memory that grounds an answer; ``score`` is 0 to 1."""

    title: str
    score: float
    snippet: str
    tags: tuple[str, ...] = ()


class Usage(Struct, frozen=True, gc=False):
    """What an answer cost, in tokens and US dollars; ``cost_usd`` is None when no price is known."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cost_usd: float | None = None
    estimated: bool = False


class ChatOptions(Struct, frozen=True, kw_only=True, gc=False):
    """How one message is to be answered; None leaves a choice to the default."""

    max_tokens: int | None = None
    temperature: float | None = None
    model: str = ""
    retrieval: bool = True
    top_k: int | None = None
    filters: Mapping[str, str] = field(default_factory=dict)
    skip_cache: bool = False


class Exchange(Struct, frozen=True, gc=False):
    """A message and its whole answer; in a history that a caller gives, either may be missing, and is ""."""

    message: str
    answer: str


class ChatRequest(Struct, frozen=True, kw_only=True, gc=False):
    """One message of a user. Empty ids mean: anonymous, a new session.

    ``idempotent`` tells that the caller itself named the request. ``address`` is
    the caller's, without port; ``route`` names the API where limits differ by it;
    ``deadline`` is the caller's own, in loop time. ``system`` is what the caller
    tells the model to be, beside what the service does. ``history`` is what was
    said before, oldest first, by a caller who keeps that itself; None leaves it
    to the session.
    """

    message: str
    request_id: str
    idempotent: bool = False
    address: str = ""
    route: str = ""
    deadline: float | None = None
    user_id: str = ""
    session_id: str = ""
    system: str = ""
    history: tuple[Exchange, ...] | None = None
    options: ChatOptions = field(default_factory=ChatOptions)


class Started(Struct, frozen=True, gc=False):
    """The message was accepted and kept."""

    message_id: str
    session_id: str
    request_id: str


class Retrieved(Struct, frozen=True, gc=False):
    """The passages that the model is given, best first."""

    passages: tuple[Passage, ...]
    took_ms: int


class SuggestedQuestion(Struct, frozen=True, gc=False):
    """A question worth asking."""

    question: str
    category: str = "general"


class Completed(Struct, frozen=True, gc=False):
    """The whole answer was written and kept. ``model`` is provider/model.

    ``suggested_questions`` is what may be asked instead, where a guardrail refused the message or withheld text.
    """

    message_id: str
    session_id: str
    model: str
    created_at: datetime
    finish_reason: FinishReason
    usage: Usage
    cached: bool = False
    degraded: tuple[Part, ...] = ()
    suggested_questions: tuple[SuggestedQuestion, ...] = ()


Event = Started | Retrieved | str | Completed
"""One event of an answer; a str is the next piece of its text, never empty."""


class Message(Struct, frozen=True, kw_only=True, gc=False):
    """A user's message with its answer, as the history keeps it.

    ``request_key`` names the request within its caller's, "" when the caller did
    not name it; ``request_digest`` tells equal requests from others of that name.
    ``error_reason`` of a completed message names the guardrail that refused it or
    withheld text.
    """

    id: str
    user_id: str
    session_id: str
    request_id: str
    message: str
    created_at: datetime
    answer: str = ""
    status: Status = Status.PENDING
    finish_reason: FinishReason | None = None
    error_reason: str = ""
    model: str = ""
    usage: Usage | None = None
    completed_at: datetime | None = None
    cached: bool = False
    degraded: tuple[Part, ...] = ()
    passages: tuple[Passage, ...] = ()
    request_key: str = ""
    request_digest: str = ""
