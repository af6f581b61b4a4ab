"""Page tokens: where a page begins, signed, so that a token is only what this service gave for this very query."""

from __future__ import annotations

import base64
import hmac
import struct
from datetime import UTC, datetime, timedelta

from chat_grpc.domain import Message
from chat_grpc.storage import Cursor, Scope

PAGE_TOKENS = "page-tokens"
"""The name of the secret that page tokens are signed with, where the storage keeps it."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_HEAD = struct.Struct(">Bq")
_VERSION = 1
_SEAL_BYTES = 16


class PageTokens:
    """Writes and reads page tokens.

    Servers with the same secret read each other's. A token holds a time and a
    message's id, neither of them secret; whose messages are listed is part of
    what is signed, and not of the token.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def write(self, last: Message, scope: Scope) -> str:
        """Return the token of the page after the one that ends with ``last``."""
        micros = (last.created_at - _EPOCH) // timedelta(microseconds=1)
        content = _HEAD.pack(_VERSION, micros) + last.id.encode()
        return _spelt(content + self._seal(content, scope))

    def read(self, token: str, scope: Scope) -> Cursor | None:
        """Return where the page begins, or None if the token was not given for this scope."""
        try:
            raw = base64.b64decode(token, altchars=b"-_", validate=True)
            content, seal = raw[:-_SEAL_BYTES], raw[-_SEAL_BYTES:]
            # The same bytes can be spelt in more than one way; only one of them was given.
            if not hmac.compare_digest(seal, self._seal(content, scope)) or _spelt(raw) != token:
                return None
            version, micros = _HEAD.unpack_from(content)
            if version != _VERSION:
                return None
            return Cursor(_EPOCH + timedelta(microseconds=micros), content[_HEAD.size :].decode())
        except (ValueError, struct.error, OverflowError):
            return None

    def _seal(self, content: bytes, scope: Scope) -> bytes:
        # Neither id holds a line end.
        signed = f"chat-grpc page token\n{scope.user_id}\n{scope.session_id}\n".encode() + content
        return hmac.digest(self._secret, signed, "sha256")[:_SEAL_BYTES]


def _spelt(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode()
