"""The one exception that the client raises, read from a gRPC status."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

DETAILS_KEY = "grpc-status-details-bin"
UNREACHABLE = "UNREACHABLE"
CONNECTION_LOST = "CONNECTION_LOST"
INCOMPLETE = "INCOMPLETE"


@dataclass(frozen=True, slots=True)
class Violation:
    """One field of the request that breaks a rule, and the rule in words."""

    field: str
    description: str


class ChatError(Exception):
    """The service, or the way to it, failed.

    Attributes:
        code: the gRPC status code.
        message: one sentence for people.
        reason: UPPER_SNAKE_CASE, stable, what programs decide by. The service's own
            (google.rpc.ErrorInfo), or UNREACHABLE (nobody answered), CONNECTION_LOST
            (the server went away in the middle), INCOMPLETE (an answer without its
            end); empty when something else, such as a proxy, refused the call.
        metadata: what else ErrorInfo holds, such as provider and stage.
        violations: the fields that break a rule (google.rpc.BadRequest).
        retry_after: seconds after which trying again makes sense (google.rpc.RetryInfo), or None.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        *,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        violations: Iterable[Violation] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(f"{message} ({code.name}{f', {reason}' if reason else ''})")
        self.code = code
        self.message = message
        self.reason = reason
        self.metadata = dict(metadata or {})
        self.violations = tuple(violations)
        self.retry_after = retry_after


def from_status(error: grpc.aio.AioRpcError, address: str, *, answered: bool = False) -> ChatError:
    """Return the ChatError that a failed call stands for.

    Args:
        error: what grpc raised.
        address: where the call went, for the message.
        answered: whether the server had already said something in this call.
    """
    message = error.details() or ""
    details = next((value for key, value in error.trailing_metadata() or () if key == DETAILS_KEY), None)
    if isinstance(details, bytes):
        return _from_details(error.code(), message, details)
    if error.code() is grpc.StatusCode.INTERNAL and "RST_STREAM" in message:
        # A proxy that lost its server has no other way to say so once it has passed on a part of the answer.
        code = grpc.StatusCode.UNAVAILABLE
        return ChatError(code, f"the connection behind {address} was lost", reason=CONNECTION_LOST)
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        # grpc speaks of sockets and of every address it tried; people need one sentence.
        if answered:
            return ChatError(error.code(), f"the connection to {address} was lost", reason=CONNECTION_LOST)
        return ChatError(error.code(), f"no chat server at {address}", reason=UNREACHABLE)
    return ChatError(error.code(), message or f"the call to {address} failed")


def _from_details(code: grpc.StatusCode, message: str, details: bytes) -> ChatError:
    # Only a call that failed needs these, and `chat-grpc --help` does not.
    from google.protobuf.message import DecodeError
    from google.rpc import error_details_pb2, status_pb2

    info, bad_request, retry = (
        error_details_pb2.ErrorInfo(),
        error_details_pb2.BadRequest(),
        error_details_pb2.RetryInfo(),
    )
    try:
        for detail in status_pb2.Status.FromString(details).details:
            for known in (info, bad_request, retry):
                if detail.Is(known.DESCRIPTOR):
                    detail.Unpack(known)
    except DecodeError:
        # Whoever wrote these details is not our service; code and message still stand.
        return ChatError(code, message)
    return ChatError(
        code,
        message,
        reason=info.reason,
        metadata=info.metadata,
        violations=[Violation(fault.field, fault.description) for fault in bad_request.field_violations],
        retry_after=retry.retry_delay.ToTimedelta().total_seconds() if retry.HasField("retry_delay") else None,
    )
