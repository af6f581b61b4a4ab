"""Messages that are long and say nothing."""

from __future__ import annotations

import zlib

from chat_grpc.conversation.guardrails.text import Readings

LONG = 2_000
"""Bytes from which on a message is looked at."""
LEAST = 0.02
"""The share of its length to which a text of any kind of language shrinks at most."""


class Repetition:
    """Refuses a message that fills the context by saying one thing over and over. Pasted data may do so, too."""

    id = "size.repetition"

    def refuses(self, message: Readings) -> bool:
        """See InputRule."""
        data = message.raw.encode("utf-8", "replace")
        return len(data) >= LONG and len(zlib.compress(data, 1)) < LEAST * len(data)
