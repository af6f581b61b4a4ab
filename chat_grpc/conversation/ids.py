"""Names of messages."""

from __future__ import annotations

import secrets
from datetime import datetime


def new_message_id(now: datetime) -> str:
    """Return "msg_" and 32 hex digits: 48 bits of milliseconds, so that ids sort by time, then 80 random ones."""
    return f"msg_{int(now.timestamp() * 1000):012x}{secrets.token_hex(10)}"
