"""Errors in OpenAI's form, by which its SDKs choose the exception that they raise."""

from __future__ import annotations

import msgspec
from google.rpc.status_pb2 import Status

from chat_grpc import errors
from chat_grpc.rpc.errors import HttpError
from gateway.errors import ascii_json, http_status
from gateway.openai_shapes import REFUSED, ErrorObject, ErrorResponse, ErrorType

MODEL_NOT_FOUND = "MODEL_NOT_FOUND"
TYPES: dict[type[errors.ChatError], ErrorType] = {
    errors.ChatError: "server_error",
    errors.InvalidRequest: "invalid_request_error",
    errors.NotFound: "invalid_request_error",
    errors.Unauthenticated: "authentication_error",
    errors.Forbidden: "permission_error",
    errors.Conflict: "invalid_request_error",
    errors.TooManyRequests: "rate_limit_error",
    errors.Unavailable: "server_error",
}
"""OpenAI's kinds of errors; one that is not listed is of its parent's kind."""
FIELDS = {
    "message": "messages",
    "system": "messages",
    "history": "messages",
    "session_id": "metadata.session_id",
    "user_id": "user",
    "request_id": "Idempotency-Key",
}
"""OpenAI's names of the fields that the rules of a conversation are about."""
REASONS = {
    MODEL_NOT_FOUND: "model",
    "SESSION_NOT_FOUND": "metadata.session_id",
    "SESSION_OF_ANOTHER_USER": "metadata.session_id",
    "REQUEST_ID_REUSED": "Idempotency-Key",
}
"""The parameters that errors of these reasons are about."""
OPTIONS = "options."
UNEXPECTED = errors.ChatError("something went wrong on the server; the request id finds it in the log")


def openai_body(error: errors.ChatError, status: Status, request_id: str) -> HttpError:  # noqa: ARG001 (all forms are made of the same three)
    """Write an error in OpenAI's form; docs/openai.md explains it. OpenAI has the request id in a header only."""
    told = object_of(error)
    if not isinstance(error, errors.InvalidRequest):
        # Cut to a length that headers may have. What is said of a parameter is short, and in words of our own.
        told.message = status.message
    return HttpError(http_status(error, status.code), ascii_json({"error": msgspec.to_builtins(told)}))


def event_of(error: Exception) -> bytes:
    """Write what ends a stream that failed; SDKs raise APIError for it. No [DONE] follows."""
    told = object_of(error if isinstance(error, errors.ChatError) else UNEXPECTED)
    return b"data: " + msgspec.json.encode(ErrorResponse(told)) + b"\n\n"


def object_of(error: errors.ChatError) -> ErrorObject:
    """Return an error in OpenAI's form."""
    kind = next(TYPES[parent] for parent in type(error).__mro__ if parent in TYPES)
    if isinstance(error, errors.InvalidRequest):
        fault = error.violations[0]
        param = FIELDS.get(fault.field, fault.field.removeprefix(OPTIONS))
        said = fault.description.replace(OPTIONS, "")
        code = "unsupported_parameter" if fault.description in REFUSED.values() else "invalid_value"
        return ErrorObject(f"{param}: {said}" if param else said, kind, param or None, code)
    code = "rate_limit_exceeded" if isinstance(error, errors.TooManyRequests) else error.reason.lower()
    return ErrorObject(error.message, kind, REASONS.get(error.reason), code)
