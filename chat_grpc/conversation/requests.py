"""Idempotency: a request that its caller named is answered once."""

from __future__ import annotations

import hashlib

import msgspec

from chat_grpc.domain import ChatRequest
from chat_grpc.errors import Conflict


def key_of(request: ChatRequest) -> str:
    """Return the name of a request within its caller's requests, "" if the caller did not name it.

    Callers who say nothing of themselves are told apart by their address, so
    that nobody is given another's answer for a name that both chose.
    """
    if not request.idempotent:
        return ""
    caller = f"user:{request.user_id}" if request.user_id else f"address:{request.address}"
    return hashlib.sha256(f"{caller}\n{request.request_id}".encode()).hexdigest()


def digest_of(request: ChatRequest) -> str:
    """Return what tells equal requests from others: everything that was asked for."""
    options = request.options
    parts: tuple[object, ...] = (
        request.message,
        request.session_id.lower(),
        options.max_tokens,
        options.temperature,
        options.model,
        options.retrieval,
        options.top_k,
        sorted(options.filters.items()),
        options.skip_cache,
    )
    if request.system or request.history is not None:  # so that the digests of requests without them stay as they are
        parts += (request.system, request.history)
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


def check_same(request_digest: str, other_digest: str) -> None:
    """Raise Conflict unless two requests of one name are equal."""
    if request_digest != other_digest:
        raise Conflict("the request_id was used for another request; choose a new one for this one")
