"""Messages that need no closer look: plain words, and none of those without which no rule refuses anything.

Most messages are so, and telling it takes a fraction of what asking all the
rules does. The rules decide about everything else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from chat_grpc.conversation.guardrails.decoding import CIPHERED, HEX
from chat_grpc.conversation.guardrails.phrases import Phrases, Telling

LONGEST = 1_000
"""Characters of a message. More may be repetition."""
LONGEST_WORD = 15
"""Characters. More may be words that are written as one, or base64."""
MOST_LETTERS = 5
"""Words of one character. More may be a word whose letters stand apart."""
MOST_DIGITS = 11
"""Twelve letters in hex have so many and one more: such a message is looked at for them."""

_PLAIN = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 \n\r\t.,:;!?'\"()=+"
"""What is in no markup, template or escape, joins no words, and stands for no letter beside letters."""
_DIGITS = b"0123456789"
_WORD = re.compile(r"[a-z0-9]+(?:'[a-z0-9]+)*")
_DISGUISE = re.compile("[a-z][0-9]|[0-9][a-z]")


class PlainWords:
    """Tells which messages are so, for rules that look for ``phrases``."""

    def __init__(self, phrases: Iterable[Phrases]) -> None:
        self._telling = Telling(phrases, CIPHERED)

    def harmless(self, message: str) -> bool:
        """Tell whether no rule would refuse a message; False says nothing."""
        if len(message) > LONGEST or not message.isascii():
            return False
        raw = message.encode()
        if raw.translate(None, _PLAIN):
            return False
        if len(raw) - len(raw.translate(None, _DIGITS)) > MOST_DIGITS and HEX.search(message):
            return False
        text = message.lower()
        words = _WORD.findall(text)
        sizes = list(map(len, words))
        return not (
            max(sizes, default=0) > LONGEST_WORD
            or sizes.count(1) > MOST_LETTERS
            or _DISGUISE.search(text)
            or self._telling.is_in(words)
        )
