"""Messages that tell the model to be somebody who is bound by nothing."""

from __future__ import annotations

from functools import cache

from chat_grpc.conversation.guardrails.phrases import Phrases, phrase
from chat_grpc.conversation.guardrails.text import Reading, Readings

_UNBOUND = "dan unrestricted unfiltered uncensored jailbroken unshackled amoral"
_BOUNDS = (
    "restrictions filters limitations rules guidelines censorship ethics morals constraints moral ethical safeguards"
)


@cache
def phrases() -> Phrases:
    """Return what is looked for."""
    return Phrases(
        (
            phrase("you du eres you're youre", 0, "are bist become ahora now", 1, _UNBOUND + " ohne"),
            phrase("act pretend roleplay behave simulate respond answer", 5, _UNBOUND),
            phrase("do", 0, "anything", 0, "now"),
            phrase("pretend act imagine respond answer behave roleplay simulate", 6, "no without", 2, _BOUNDS),
            phrase("you", 1, "have has", 0, "no", 1, _BOUNDS),
            phrase("you", 1, "free freed released", 1, "from of", 2, _BOUNDS),
            phrase("developer god dan jailbreak sudo", 0, "mode", 2, "enabled activated unlocked"),
            phrase("enable enter activate switch unlock", 3, "god dan jailbreak sudo unrestricted developer", 0, "mode",
                   unless_next="on in of for under"),
        )
    )  # fmt: skip


def says_persona(reading: Reading) -> bool:
    """Tell whether a text tells its reader to be somebody who is bound by nothing."""
    return phrases().found_in(reading)


class Persona:
    """Refuses the well-known ways to talk a model out of its limits: "do anything now", "developer mode enabled"."""

    id = "injection.persona"

    def refuses(self, message: Readings) -> bool:
        """See InputRule."""
        return any(says_persona(reading) for reading in message.plain)
