"""The one table from errors to gRPC statuses, with google.rpc details."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import grpc
from google.protobuf.any_pb2 import Any as AnyProto
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message as Proto
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status

from chat_grpc import errors

DOMAIN = "chat-grpc"
"""ErrorInfo.domain of every error of this service."""

CODES: dict[type[errors.ChatError], grpc.StatusCode] = {
    errors.ChatError: grpc.StatusCode.INTERNAL,
    errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.Forbidden: grpc.StatusCode.PERMISSION_DENIED,
    errors.Conflict: grpc.StatusCode.ABORTED,
    errors.TooManyRequests: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.Draining: grpc.StatusCode.UNAVAILABLE,
    errors.StorageUnavailable: grpc.StatusCode.UNAVAILABLE,
    errors.RetrievalUnavailable: grpc.StatusCode.UNAVAILABLE,
    errors.ModelError: grpc.StatusCode.UNAVAILABLE,
    errors.ModelUnavailable: grpc.StatusCode.UNAVAILABLE,
    errors.ModelBroke: grpc.StatusCode.UNAVAILABLE,
    errors.ModelTimeout: grpc.StatusCode.DEADLINE_EXCEEDED,
}


MAX_MESSAGE = 1_000
MAX_TEXT = 250
MAX_VIOLATIONS = 8
"""Statuses travel in headers, which everybody on the way limits: 8 KiB is what most of them take.
Callers choose how many rules they break, and some names that are quoted back."""


@dataclass(frozen=True, slots=True)
class HttpError:
    """How an error looks to HTTP clients: a status, and a body that is JSON in ASCII of at most 4 KiB."""

    status: int
    body: str


ErrorBody = Callable[[errors.ChatError, Status, str], HttpError]
"""Makes it of the error, its gRPC status (code, message, google.rpc details) and the request id."""


@dataclass(frozen=True, slots=True)
class WireStatus:
    """A status as grpc.aio's ``context.abort`` takes it."""

    code: grpc.StatusCode
    message: str
    trailers: tuple[tuple[str, str | bytes], ...]


def to_status(error: errors.ChatError, request_id: str, http: ErrorBody | None = None) -> WireStatus:
    """Return the status of an error.

    Details: ErrorInfo and RequestInfo always, BadRequest for field violations,
    RetryInfo where waiting helps. Trailers repeat what HTTP clients look for,
    since Envoy turns them into headers: x-request-id, and retry-after in whole
    seconds. With ``http``, x-http-status and x-error-body tell Envoy what else
    it is to make of them.
    """
    code = CODES[type(error)]
    details: list[Proto] = [
        error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata),
        error_details_pb2.RequestInfo(request_id=request_id),
    ]
    trailers: list[tuple[str, str | bytes]] = [("x-request-id", request_id)]
    if isinstance(error, errors.InvalidRequest):
        violations = [
            error_details_pb2.BadRequest.FieldViolation(
                field=_cut(fault.field, MAX_TEXT), description=_cut(fault.description, MAX_TEXT)
            )
            for fault in error.violations[:MAX_VIOLATIONS]
        ]
        details.append(error_details_pb2.BadRequest(field_violations=violations))
    if isinstance(error, errors.Unauthenticated):
        trailers.append(("www-authenticate", error.challenge))
    if error.retry_after is not None:
        delay = Duration()
        delay.FromNanoseconds(int(error.retry_after * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
        trailers.append(("retry-after", str(math.ceil(error.retry_after))))
    packed = []
    for detail in details:
        packed.append(AnyProto())
        packed[-1].Pack(detail)
    number: int = code.value[0]
    status = Status(code=number, message=_cut(error.message, MAX_MESSAGE), details=packed)
    trailers.append(("grpc-status-details-bin", status.SerializeToString()))
    if http is not None:
        told = http(error, status, request_id)
        trailers += [("x-http-status", str(told.status)), ("x-error-body", told.body)]
    return WireStatus(code, status.message, tuple(trailers))


def _cut(text: str, size: int) -> str:
    """Return as much of a text as takes about ``size`` bytes, also where what is not ASCII is escaped."""
    kept = size if text.isascii() else size // 12
    return text if len(text) <= kept else f"{text[:kept]}..."
