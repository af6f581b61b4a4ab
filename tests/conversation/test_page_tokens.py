"""Page tokens are what the service gave for this query, unchanged, or nothing."""

from __future__ import annotations

import base64
import string
from datetime import UTC, datetime

import pytest

from chat_grpc.conversation.page_tokens import PageTokens
from chat_grpc.domain import Message
from chat_grpc.storage import Cursor, Scope

ANNA = Scope(user_id="anna")
LAST = Message(
    id="msg_" + "0123456789abcdef" * 2,
    user_id="anna",
    session_id="s",
    request_id="r",
    message="m",
    created_at=datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
)
TOKENS = PageTokens(b"a secret of the server")


def test_a_token_is_read_as_it_was_written_by_any_server_of_the_secret() -> None:
    token = TOKENS.write(LAST, ANNA)
    assert PageTokens(b"a secret of the server").read(token, ANNA) == Cursor(LAST.created_at, LAST.id)
    assert "anna" not in base64.urlsafe_b64decode(token).decode("latin-1")


@pytest.mark.parametrize(
    "scope", [Scope(user_id="bert"), Scope(session_id="anna"), Scope(), Scope(user_id="ann", session_id="a")]
)
def test_a_token_is_none_of_another_query(scope: Scope) -> None:
    assert TOKENS.read(TOKENS.write(LAST, ANNA), scope) is None


def test_a_token_is_none_of_another_secret() -> None:
    assert PageTokens(b"another secret").read(TOKENS.write(LAST, ANNA), ANNA) is None


@pytest.mark.parametrize("identifier", ["msg_1", "msg_12", "msg_123", LAST.id])
def test_no_character_can_be_changed_left_out_or_added(identifier: str) -> None:
    last = Message(
        id=identifier, user_id="anna", session_id="s", request_id="r", message="m", created_at=LAST.created_at
    )
    token = TOKENS.write(last, ANNA)
    for index, character in enumerate(token):
        for other in string.ascii_letters + string.digits + "-_=+/ ":
            if other != character:
                assert TOKENS.read(token[:index] + other + token[index + 1 :], ANNA) is None, (index, other)
        assert TOKENS.read(token[:index] + token[index + 1 :], ANNA) is None
        assert TOKENS.read(token[:index] + "A" + token[index:], ANNA) is None
    assert TOKENS.read(token + "A", ANNA) is None
    assert TOKENS.read(token + "====", ANNA) is None


@pytest.mark.parametrize("token", ["rubbish", "A" * 64, "ünï", "=", "", "AAAA" * 1000])
def test_what_was_never_a_token(token: str) -> None:
    assert TOKENS.read(token, ANNA) is None
