"""Answers that hold one of the service's own keys."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator

from chat_grpc.conversation.guardrails import Found
from chat_grpc.conversation.guardrails.squeezed import Forbidden, Leak, squeeze

LETTERS = 16
"""So many letters and digits of a key in a row are withheld; keys with fewer are words, as likely as not."""
GRAM = 4

_RANDOM = re.compile(r"(?=.*\d)(?=.*[a-z])", re.DOTALL)


class OwnKeyLeak:
    """Withholds the service's own keys and passwords, in any case, backwards, in hex, in base64, with anything between.

    Args:
        secrets: the keys. One that could be plain words ("not-needed") is left alone.
    """

    id = "leak.own_key"
    long: frozenset[bytes] = frozenset()

    def __init__(self, secrets: Iterable[str]) -> None:
        forms = {form for secret in secrets if _is_key(secret) for form in _forms(secret)}
        self._leak = Leak([Forbidden(form, LETTERS) for form in sorted(forms)], GRAM)
        self.short = self._leak.grams

    def look(self, text: str, squeezed: bytes, question: str, /) -> Found | None:
        """See OutputRule."""
        return self._leak.look(text, squeezed, question)


def _is_key(secret: str) -> bool:
    squeezed = squeeze(secret).decode()
    return len(squeezed) >= LETTERS and _RANDOM.match(squeezed) is not None


def _forms(secret: str) -> Iterator[bytes]:
    data = secret.encode()
    yield squeeze(secret)
    yield squeeze(secret[::-1])
    yield squeeze(data.hex())
    for before in range(3):  # base64 writes a text in three ways, by where in it the text begins
        yield squeeze(base64.b64encode(b"\0" * before + data).decode()[4 * (before > 0) : -4])
