"""What REST clients are told of an error: an HTTP status, and one JSON form for all."""

from __future__ import annotations

import json
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.rpc.status_pb2 import Status

from chat_grpc import errors
from chat_grpc.rpc.errors import HttpError

STATUSES: dict[int, int] = {
    1: 499,  # CANCELLED
    3: 400,  # INVALID_ARGUMENT
    4: 504,  # DEADLINE_EXCEEDED
    5: 404,  # NOT_FOUND
    7: 403,  # PERMISSION_DENIED
    8: 429,  # RESOURCE_EXHAUSTED
    10: 409,  # ABORTED
    13: 500,  # INTERNAL
    14: 503,  # UNAVAILABLE
    16: 401,  # UNAUTHENTICATED
}
"""HTTP statuses by gRPC code: those of the codes that rpc/errors.py gives."""


def http_status(error: errors.ChatError, code: int) -> int:
    """Return the HTTP status of an error that has a gRPC code.

    HTTP tells a provider that answered badly (502) from none that answered
    (503); gRPC has UNAVAILABLE for both.
    """
    return 502 if isinstance(error, errors.ModelBroke) else STATUSES[code]  # the status is the RFC's number


def rest_body(error: errors.ChatError, status: Status, request_id: str) -> HttpError:
    """Write an error in the form of the REST API; docs/rest.md explains it."""
    details: list[dict[str, Any]] = [
        MessageToDict(detail, preserving_proto_field_name=True) for detail in status.details
    ]
    fields = {
        "detail": status.message,
        "message": status.message,
        "error": error.reason,
        "code": status.code,
        "request_id": request_id,
        "details": details,
    }
    return HttpError(http_status(error, status.code), ascii_json(fields))


def ascii_json(fields: dict[str, Any]) -> str:
    """Write JSON that is fit for a header: printable ASCII, nothing else."""
    # json escapes all that is not ASCII, but for DEL.
    return json.dumps(fields, separators=(",", ":")).replace("\x7f", "\\u007f")
