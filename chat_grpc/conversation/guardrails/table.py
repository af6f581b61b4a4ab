"""All guardrails by their ids. Nothing is imported here, so that reading settings stays quick."""

from __future__ import annotations

from chat_grpc.conversation.guardrails import Side

RULES: dict[str, tuple[Side, bool]] = {
    "injection.override": (Side.INPUT, True),
    "injection.reveal": (Side.INPUT, True),
    "injection.persona": (Side.INPUT, True),
    "injection.template": (Side.INPUT, False),
    "encoded.injection": (Side.INPUT, True),
    "characters.hidden": (Side.INPUT, True),
    "size.repetition": (Side.INPUT, False),
    "leak.prompt": (Side.OUTPUT, True),
    "leak.own_key": (Side.OUTPUT, True),
    "leak.key": (Side.OUTPUT, True),
    "leak.private_key": (Side.OUTPUT, True),
    "leak.token": (Side.OUTPUT, False),
}
"""The side of each rule, and whether it is on by default: if it refuses none of the innocent texts of the tests."""

REASON = "GUARDRAIL_"
"""What the history's error_reason begins with for a message that a guardrail refused."""


def chosen(which: str, without: str) -> list[str]:
    """Return the ids of the rules that settings switch on.

    Args:
        which: on, all or off.
        without: ids to switch off, comma-separated.
    """
    if which == "off":
        return []
    skipped = listed(without)
    return [rule for rule, (_, default) in RULES.items() if (default or which == "all") and rule not in skipped]


def unknown(without: str) -> list[str]:
    """Return what a list of ids holds that is none."""
    return [rule for rule in listed(without) if rule not in RULES]


def listed(text: str) -> list[str]:
    """Return the ids of a comma-separated list."""
    return [rule.strip() for rule in text.split(",") if rule.strip()]


def reason_of(rule: str) -> str:
    """Return what the history's error_reason says of a rule, such as GUARDRAIL_LEAK_PROMPT."""
    return REASON + rule.replace(".", "_").upper()
