"""Messages that pass for other messages of the prompt."""

from __future__ import annotations

import re

from chat_grpc.conversation.guardrails.text import Readings

_TEMPLATE = re.compile(
    r"<\|(?:im_start|im_end|system|start_header_id|eot_id|endoftext)\|>|<</?SYS>>|\[/?INST\]|<(?:start|end)_of_turn>"
    r"|</?passages?\s*>|^\s{0,3}#{2,4} ?(?:system|new instructions?)(?: (?:prompt|message))? ?:?$",
    re.IGNORECASE | re.MULTILINE,
)


class Template:
    """Refuses the marks by which the templates of models set messages apart. Programmers ask about them, too."""

    id = "injection.template"

    def refuses(self, message: Readings) -> bool:
        """See InputRule."""
        return _TEMPLATE.search(message.raw) is not None
