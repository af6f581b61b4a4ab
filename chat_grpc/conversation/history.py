"""Reading and deleting what was said."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from chat_grpc.conversation import access, rules
from chat_grpc.conversation.page_tokens import PageTokens
from chat_grpc.conversation.sessions import Sessions
from chat_grpc.domain import Message
from chat_grpc.errors import InvalidRequest, Violation
from chat_grpc.shared import SharedState
from chat_grpc.storage import Scope, Storage

DEFAULT_PAGE = 20
MAX_PAGE = 100


@dataclass(frozen=True, slots=True)
class Page:
    """Messages, newest first, and the token of the next page ("" on the last)."""

    messages: list[Message]
    next_page_token: str


class History:
    """What was said, by user or by session."""

    def __init__(
        self, storage: Storage, sessions: Sessions, page_tokens: PageTokens, shared: SharedState | None = None
    ) -> None:
        self._storage = storage
        self._sessions = sessions
        self._page_tokens = page_tokens
        self._shared = shared

    async def list_messages(self, user_id: str, session_id: str, *, page_size: int, page_token: str) -> Page:
        """Return one page; page_size 0 means 20, more than 100 means 100.

        A caller who has shown who it is, and names neither id, is given its own.

        Raises:
            InvalidRequest: neither or both ids, a negative page_size, or a
                page_token that this query did not return.
            Forbidden: they are another user's.
            StorageUnavailable: the history can't be read.
        """
        if not session_id:
            user_id = access.owner(user_id)
        violations = list(_scope_violations(user_id, session_id))
        if page_size < 0:
            violations.append(Violation("page_size", f"must be 0 to {MAX_PAGE}"))
        scope = Scope(user_id, session_id.lower())
        before = None
        if page_token and not violations:
            before = self._page_tokens.read(page_token, scope)
            if before is None:
                violations.append(
                    Violation("page_token", "is not one that this query returned; leave it empty to begin anew")
                )
        if violations:
            raise InvalidRequest(violations)
        size = min(page_size or DEFAULT_PAGE, MAX_PAGE)
        messages = await self._storage.list_messages(scope, limit=size + 1, before=before)
        access.check_session(messages)
        more = len(messages) > size
        return Page(messages[:size], self._page_tokens.write(messages[size - 1], scope) if more else "")

    async def delete_messages(self, user_id: str, session_id: str) -> int:
        """Delete all messages of a user or of a session, and return how many there were.

        Raises:
            InvalidRequest: neither or both ids.
            Forbidden: they are another user's; nothing was deleted.
            StorageUnavailable: nothing was deleted.
        """
        if user_id:
            access.owner(user_id)
        violations = list(_scope_violations(user_id, session_id))
        if violations:
            raise InvalidRequest(violations)
        scope = Scope(user_id, session_id.lower())
        if session_id and access.identity() is not None:
            latest = await self._storage.list_messages(scope, limit=1)
            if not latest:  # it may go on, as somebody's who has not finished a message yet
                return 0
            access.check_session(latest)
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
