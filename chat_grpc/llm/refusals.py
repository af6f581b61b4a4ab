"""What an HTTP status says of a provider, as the error that callers are told."""

from __future__ import annotations

import math

from chat_grpc.errors import ModelUnavailable

CLIENT_FAULTS = range(400, 500)
BRIEF = frozenset({408, 425})
"""Client faults that pass: the request came too slowly, or too early."""
SITE_OVERLOADED = 529
"""Anthropic's and others' word for 503; in no RFC."""
UNNAMED_WAIT = 1.0
"""Seconds that a provider is taken to ask for if it has too much to do and names no time."""

REQUEST_FAULTS = frozenset({"MODEL_REFUSED", "MODEL_UNKNOWN", "MODEL_TOO_LONG", "MODEL_CONTENT_POLICY"})
"""Reasons that tell of the request, not of the provider's health."""
LASTING = REQUEST_FAULTS | {"MODEL_AUTH", "MODEL_CREDIT"}
"""Reasons that no waiting changes."""
BRIEF_FAULTS = frozenset({"MODEL_UNAVAILABLE", "MODEL_OVERLOADED", "MODEL_RATE_LIMITED"})
"""Reasons for which the same provider may be asked again soon."""
ASK_TO_WAIT = frozenset({"MODEL_OVERLOADED", "MODEL_RATE_LIMITED"})
"""Those of them whose ``retry_after`` is what the provider asked for, or UNNAMED_WAIT."""


def refused(provider: str, status: int, *, retry_after: float | None, key_setting: str) -> ModelUnavailable:
    """Return the error for a status that is no success.

    Args:
        provider: the provider's name.
        status: what it answered with.
        retry_after: the seconds that it asked to wait; None if it did not.
        key_setting: the setting that a person changes when the key is refused.
    """
    reason, text = {
        401: ("MODEL_AUTH", f"refused the key; check {key_setting}"),
        403: ("MODEL_AUTH", f"refused the key; check {key_setting}"),
        402: ("MODEL_CREDIT", "wants the account to be paid up"),
        404: ("MODEL_UNKNOWN", "does not know the model or the path; check CHAT_LLM_MODEL and CHAT_LLM_BASE_URL"),
        413: ("MODEL_TOO_LONG", "finds the message too long"),
        429: ("MODEL_RATE_LIMITED", "has had too many requests"),
    }.get(status, ("MODEL_UNAVAILABLE", f"answered with HTTP status {status}"))
    if reason == "MODEL_UNAVAILABLE":
        if status in CLIENT_FAULTS and status not in BRIEF:
            reason, text = "MODEL_REFUSED", f"refused the request with HTTP status {status}"
        elif retry_after is not None or status == SITE_OVERLOADED:
            reason, text = "MODEL_OVERLOADED", "is overloaded"
    if reason in ASK_TO_WAIT and retry_after is None:
        retry_after = UNNAMED_WAIT
    return ModelUnavailable(
        f"the model provider {provider} {text}",
        provider=provider,
        stage="connect",
        reason=reason,
        retry_after=retry_after,
    )


def seconds(retry_after: str) -> float | None:
    """Read a Retry-After header; only its form in seconds is in use (RFC 9110, 10.2.3)."""
    try:
        wait = float(retry_after)
    except ValueError:
        return None
    return None if math.isnan(wait) else min(max(wait, 0.0), 3600.0)
