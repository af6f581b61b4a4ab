"""Messages with characters in them that models read and people can't see."""

from __future__ import annotations

import re

from chat_grpc.conversation.guardrails.text import Readings

_HIDDEN = re.compile(
    # Letters of the tag block, except in the flags of England, Scotland and Wales, ...
    "(?<!\U0001f3f4)(?<![\U000e0061-\U000e007a\U000e0030-\U000e0039])[\U000e0001-\U000e007f]{2}"
    "|\U0001f3f4[\U000e0061-\U000e007a\U000e0030-\U000e0039]{7}"
    # ... what has a line run the other way, ...
    "|[\u202d\u202e]"
    # ... bytes written as variation selectors, of which a letter has one at most, ...
    "|[\ufe00-\ufe0f\U000e0100-\U000e01ef]{3}"
    # ... and the control characters that a terminal acts on.
    "|[\x80-\x9f]"
)
_SPLIT = re.compile("[A-Za-z][\u00ad\u200b-\u200d\u2060-\u2064\ufeff](?=[A-Za-z])")
MAX_SPLIT = 3
"""Invisible characters between Latin letters that a text may have; copied words bring one or two along."""


class Hidden:
    """Refuses text that people can't see: tag letters, reversed lines, words cut by invisible characters."""

    id = "characters.hidden"

    def refuses(self, message: Readings) -> bool:
        """See InputRule."""
        raw = message.raw
        if raw.isascii():
            return False
        return _HIDDEN.search(raw) is not None or len(_SPLIT.findall(raw)) > MAX_SPLIT
