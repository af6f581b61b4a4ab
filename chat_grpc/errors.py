"""Everything that can go wrong, as a tree of exceptions free of transport.

    ChatError
    ├── InvalidRequest         the caller must change the request
    ├── NotFound               no such session, profile, ...
    ├── Unauthenticated        the caller must show who it is
    ├── Forbidden              it belongs to somebody else
    ├── Conflict               the request's id names another request
    ├── TooManyRequests        a limit is reached; waiting helps
    ├── Draining               this server is stopping
    └── Unavailable            a part is missing; waiting helps
        ├── StorageUnavailable
        ├── RetrievalUnavailable
        └── ModelError         a provider failed
            ├── ModelUnavailable   it could not be reached, or refused
            ├── ModelBroke         it answered badly: cut, empty, not the protocol
            └── ModelTimeout       a time limit passed

rpc/errors.py holds the one table from these to gRPC statuses. Texts of these
exceptions are shown to clients: they never quote a key, a message, or the text
of a foreign exception.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Violation:
    """One field that breaks a rule: its path in the request, and the rule in words."""

    field: str
    description: str


class ChatError(Exception):
    """An error that is part of the interface.

    Attributes:
        reason: UPPER_SNAKE_CASE, stable, what clients decide by.
        metadata: what else a client may want to decide by, such as the stage.
        retry_after: seconds after which trying again makes sense; None if it doesn't.
    """

    default_reason: ClassVar[str] = "INTERNAL"
    default_retry_after: ClassVar[float | None] = None

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.metadata = dict(metadata or {})
        self.retry_after = self.default_retry_after if retry_after is None else retry_after


class InvalidRequest(ChatError):
    """The request breaks a rule; ``violations`` names each field that does."""

    default_reason = "INVALID_REQUEST"

    def __init__(self, violations: Sequence[Violation]) -> None:
        super().__init__("; ".join(f"{fault.field}: {fault.description}" for fault in violations))
        self.violations = tuple(violations)


class NotFound(ChatError):
    """What the request names does not exist."""

    default_reason = "NOT_FOUND"


class Unauthenticated(ChatError):
    """The caller must show a credential, or a better one.

    Attributes:
        challenge: what RFC 6750 has HTTP clients told in WWW-Authenticate; it
            names a fault only of a credential that was shown.
    """

    default_reason = "UNAUTHENTICATED"

    def __init__(self, message: str, *, reason: str | None = None, fault: str = "invalid_token") -> None:
        super().__init__(message, reason=reason)
        told = f', error="{fault}", error_description="{message}"' if fault else ""
        self.challenge = f'Bearer realm="chat-grpc"{told}'


class Forbidden(ChatError):
    """What the request names belongs to somebody else."""

    default_reason = "FORBIDDEN"


class Conflict(ChatError):
    """The request's id names another request, or one that is being answered elsewhere."""

    default_reason = "REQUEST_ID_REUSED"


class TooManyRequests(ChatError):
    """A limit is reached; waiting helps."""

    default_reason = "RATE_LIMITED"
    default_retry_after = 1.0


class Unavailable(ChatError):
    """A part is missing; waiting helps."""

    default_reason = "UNAVAILABLE"
    default_retry_after = 1.0


class Draining(Unavailable):
    """This server is stopping; another one, or this one later, will answer."""

    default_reason = "DRAINING"
    cancel_message: ClassVar[str] = "draining"
    """What a call's task is cancelled with when its time to finish is over."""

    def __init__(self) -> None:
        super().__init__("the server is stopping; try again")

    @classmethod
    def ended(cls, error: BaseException) -> bool:
        """Tell whether a cancellation is a drain's, and if so take it back from the task, which goes on to say so."""
        if not isinstance(error, asyncio.CancelledError) or error.args != (cls.cancel_message,):
            return False
        task = asyncio.current_task()
        if task is not None:
            task.uncancel()
        return True


class StorageUnavailable(Unavailable):
    """The database can't keep or read messages now."""

    default_reason = "STORAGE_UNAVAILABLE"


class RetrievalUnavailable(Unavailable):
    """The memvid service can't be reached or does not answer in time."""

    default_reason = "RETRIEVAL_UNAVAILABLE"


class ModelError(Unavailable):
    """A provider failed. ``metadata`` holds provider and stage."""

    default_reason = "MODEL_UNAVAILABLE"
    default_retry_after = 2.0

    def __init__(
        self,
        message: str,
        *,
        provider: str,
        stage: str,
        reason: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(
            message, reason=reason, metadata={"provider": provider, "stage": stage}, retry_after=retry_after
        )


class ModelUnavailable(ModelError):
    """The provider could not be reached, or refused the request."""


class ModelBroke(ModelError):
    """The provider answered badly: cut short, empty, or not its own protocol."""

    default_reason = "MODEL_BROKE"


class ModelTimeout(ModelError):
    """The provider was silent for longer than a time limit."""

    default_reason = "MODEL_TIMEOUT"
