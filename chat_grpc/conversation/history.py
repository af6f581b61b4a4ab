"""Reading and deleting what was said."""

from __future__ import annotations

import base64
import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from chat_grpc.conversation import rules
from chat_grpc.conversation.sessions import Sessions
from chat_grpc.domain import Message
from chat_grpc.errors import InvalidRequest, Violation
from chat_grpc.shared import SharedState
from chat_grpc.storage import Cursor, Scope, Storage

DEFAULT_PAGE = 20
MAX_PAGE = 100

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_CHECK = struct.Struct(">8sq")


@dataclass(frozen=True, slots=True)
class Page:
    """Messages, newest first, and the token of the next page ("" on the last)."""

    messages: list[Message]
    next_page_token: str


class History:
    """What was said, by user or by session."""

    def __init__(self, storage: Storage, sessions: Sessions, shared: SharedState | None = None) -> None:
        self._storage = storage
        self._sessions = sessions
        self._shared = shared

    async def list_messages(self, user_id: str, session_id: str, *, page_size: int, page_token: str) -> Page:
        """Return one page; page_size 0 means 20, more than 100 means 100.

        Raises:
            InvalidRequest: neither or both ids, a negative page_size, or a
                page_token that this query did not return.
            StorageUnavailable: the history can't be read.
        """
        violations = list(_scope_violations(user_id, session_id))
        if page_size < 0:
            violations.append(Violation("page_size", f"must be 0 to {MAX_PAGE}"))
        scope = Scope(user_id, session_id.lower())
        before = None
        if page_token and not violations:
            before = _read_token(page_token, scope)
            if before is None:
                violations.append(
                    Violation("page_token", "is not one that this query returned; leave it empty to begin anew")
                )
        if violations:
            raise InvalidRequest(violations)
        size = min(page_size or DEFAULT_PAGE, MAX_PAGE)
        messages = await self._storage.list_messages(scope, limit=size + 1, before=before)
        more = len(messages) > size
        return Page(messages[:size], _write_token(messages[size - 1], scope) if more else "")

    async def delete_messages(self, user_id: str, session_id: str) -> int:
        """Delete all messages of a user or of a session, and return how many there were.

        Raises:
            InvalidRequest: neither or both ids.
            StorageUnavailable: nothing was deleted.
        """
        violations = list(_scope_violations(user_id, session_id))
        if violations:
            raise InvalidRequest(violations)
        scope = Scope(user_id, session_id.lower())
        deleted = await self._storage.delete_messages(scope)
        self._sessions.forget(scope)
        if self._shared is not None:
            await self._shared.forget(scope)
        return deleted


def _scope_violations(user_id: str, session_id: str) -> Iterator[Violation]:
    if bool(user_id) == bool(session_id):
        yield Violation("user_id", "name exactly one of user_id and session_id")
    yield from rules.check_user_id(user_id)
    yield from rules.check_session_id(session_id)


def _digest(scope: Scope) -> bytes:
    return hashlib.sha256(f"{scope.user_id}\n{scope.session_id}".encode()).digest()[:8]


def _write_token(message: Message, scope: Scope) -> str:
    micros = (message.created_at - _EPOCH) // timedelta(microseconds=1)
    raw = _CHECK.pack(_digest(scope), micros) + message.id.encode()
    return base64.urlsafe_b64encode(raw + hashlib.sha256(raw).digest()[:4]).decode()


def _read_token(token: str, scope: Scope) -> Cursor | None:
    """Return where the page begins, or None if the token is not one of this scope."""
    try:
        sealed = base64.b64decode(token, altchars=b"-_", validate=True)
        raw, seal = sealed[:-4], sealed[-4:]
        digest, micros = _CHECK.unpack_from(raw)
        if hashlib.sha256(raw).digest()[:4] != seal or digest != _digest(scope):
            return None
        return Cursor(_EPOCH + timedelta(microseconds=micros), raw[_CHECK.size :].decode())
    except (ValueError, struct.error, OverflowError):
        return None
