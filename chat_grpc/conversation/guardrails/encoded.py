"""Messages that hide an injection in a code."""

from __future__ import annotations

from chat_grpc.conversation.guardrails.override import says_override
from chat_grpc.conversation.guardrails.persona import says_persona
from chat_grpc.conversation.guardrails.reveal import says_reveal
from chat_grpc.conversation.guardrails.text import Readings

_SAYS = (says_override, says_reveal, says_persona)


class Encoded:
    """Refuses what says an injection in base64, hex, percent signs, escapes, rot13 or backwards."""

    id = "encoded.injection"

    def refuses(self, message: Readings) -> bool:
        """See InputRule."""
        return any(says(reading) for reading in message.decoded for says in _SAYS)
