"""The rules that a request must keep, before anything is done about it."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator, Sequence

from chat_grpc.domain import ChatRequest, Exchange
from chat_grpc.errors import InvalidRequest, Violation

MAX_MESSAGE = 10_000
MAX_EARLIER_TEXT = 100_000
"""Characters that each earlier message of a caller's own history may have, and what it tells the model to be."""
MAX_EARLIER = 2_000
"""How many exchanges it may have; the model is given the latest of them that it can read."""
MAX_REQUEST_ID = 128
MAX_TOKENS = 8_192
MAX_TEMPERATURE = 2.0
MAX_TOP_K = 20
MAX_FILTERS = 16
MAX_FILTER_TEXT = 200

_USER_ID = re.compile(r"[A-Za-z0-9._@:-]{3,100}")
_REQUEST_ID = re.compile(r"[!-~]{1,128}")
# C0 controls but tab, line feed and carriage return: they show nothing to a
# person and can hide text from one.
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def check_request(request: ChatRequest, *, models: frozenset[str]) -> None:
    """Raise InvalidRequest, naming every field that breaks a rule.

    The bounds are those that protos/chat/v1/chat.proto tells callers.
    """
    violations = list(_violations(request, models))
    if violations:
        raise InvalidRequest(violations)


def _violations(request: ChatRequest, models: frozenset[str]) -> Iterator[Violation]:
    yield from check_message(request.message, MAX_MESSAGE)
    yield from check_user_id(request.user_id)
    yield from check_session_id(request.session_id)
    if not _REQUEST_ID.fullmatch(request.request_id):
        yield Violation("request_id", f"must be 1 to {MAX_REQUEST_ID} visible ASCII characters")
    if request.system or request.history:
        yield from _check_given(request.system, request.history or ())
    options = request.options
    if options.max_tokens is not None and not 1 <= options.max_tokens <= MAX_TOKENS:
        yield Violation("options.max_tokens", f"must be 1 to {MAX_TOKENS:,}")
    if options.temperature is not None and not 0 <= options.temperature <= MAX_TEMPERATURE:
        yield Violation("options.temperature", f"must be 0 to {MAX_TEMPERATURE:g}")
    if options.top_k is not None and not 1 <= options.top_k <= MAX_TOP_K:
        yield Violation("options.top_k", f"must be 1 to {MAX_TOP_K}")
    if options.model and options.model not in models:
        yield Violation("options.model", f"is not allowed here; one of: {', '.join(sorted(models))}")
    if len(options.filters) > MAX_FILTERS:
        yield Violation("options.filters", f"must be at most {MAX_FILTERS} pairs")
    if options.filters and any(len(text) > MAX_FILTER_TEXT for pair in options.filters.items() for text in pair):
        yield Violation("options.filters", f"keys and values must be at most {MAX_FILTER_TEXT} characters")


def _check_given(system: str, history: Sequence[Exchange]) -> Iterator[Violation]:
    """Yield what is wrong with what a caller says beside the message."""
    if len(system) > MAX_EARLIER_TEXT:
        yield Violation("system", f"must be at most {MAX_EARLIER_TEXT:,} characters; it has {len(system):,}")
    if len(history) > MAX_EARLIER:
        yield Violation("history", f"must be at most {MAX_EARLIER:,} exchanges; it has {len(history):,}")
    if any(len(text) > MAX_EARLIER_TEXT for said in history for text in (said.message, said.answer)):
        yield Violation("history", f"must hold no message of more than {MAX_EARLIER_TEXT:,} characters")


def check_message(message: str, limit: int) -> Iterator[Violation]:
    """Yield what is wrong with a message's text; ``limit`` is in characters."""
    if not message.strip():
        yield Violation("message", "must not be empty")
    elif len(message) > limit:
        yield Violation("message", f"must be at most {limit:,} characters; it has {len(message):,}")
    elif _CONTROLS.search(message):
        yield Violation("message", "must not hold control characters other than tab and line ends")


def check_user_id(user_id: str) -> Iterator[Violation]:
    """Yield what is wrong with a user's id; none is fine."""
    if user_id and not is_user_id(user_id):
        yield Violation("user_id", "must be 3 to 100 characters of A-Z a-z 0-9 . _ @ : -")


def is_user_id(text: str) -> bool:
    """Tell whether a text can be a user's id."""
    return _USER_ID.fullmatch(text) is not None


def check_session_id(session_id: str) -> Iterator[Violation]:
    """Yield what is wrong with a session's id; none is fine."""
    if session_id:
        try:
            if str(uuid.UUID(session_id)) == session_id.lower():
                return
        except ValueError:
            pass
        yield Violation("session_id", "must be a UUID, or empty to begin a new session")
