"""Who may do what with whose messages.

While authentication is off, nobody has an identity: names are what callers say,
and the id of a session, which can't be guessed, is the key to it. With it on,
everybody has one, and reaches what is its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextvars import ContextVar

from chat_grpc.domain import Identity, Message
from chat_grpc.errors import Forbidden

ADMIN = "chat:admin"
"""The scope of those who may read and delete what is anybody's, and all that other scopes are for."""
METRICS = "chat:metrics"
"""The scope of those who may read what the server counts."""

_identity: ContextVar[Identity | None] = ContextVar("identity", default=None)


def identity() -> Identity | None:
    """Return who has made the call that is being answered; None while authentication is off."""
    return _identity.get()


def enter(who: Identity) -> None:
    """Answer, in this task, for somebody."""
    _identity.set(who)


def has(who: Identity, scope: str) -> bool:
    """Tell whether somebody has a scope."""
    return scope in who.scopes or ADMIN in who.scopes


def speaker(user_id: str) -> str:
    """Return whose message it is that names a user, or none ("").

    Nobody speaks for others, administrators neither: what the history says of
    somebody, that one has said.

    Raises:
        Forbidden: it names another user than its sender.
    """
    who = identity()
    if who is None:
        return user_id
    if user_id and user_id != who.user_id:
        raise Forbidden("the message names another user than its sender", reason="ANOTHER_USER")
    return who.user_id


def owner(user_id: str) -> str:
    """Return whose messages are asked for: those of the user named, or ("") the caller's own.

    Raises:
        Forbidden: they are another user's.
    """
    who = identity()
    if who is None:
        return user_id
    if user_id and user_id != who.user_id and not has(who, ADMIN):
        raise Forbidden("the messages are another user's", reason="ANOTHER_USER")
    return user_id or who.user_id


def check_session(messages: Iterable[Message]) -> None:
    """Raise Forbidden if messages are another user's than the caller's."""
    who = identity()
    if who is None or has(who, ADMIN):
        return
    if any(message.user_id != who.user_id for message in messages):
        raise Forbidden("the session belongs to another user", reason="SESSION_OF_ANOTHER_USER")
