"""Names of messages."""

from __future__ import annotations

from datetime import datetime

from chat_grpc.entropy import random_hex


def new_message_id(now: datetime) -> str:
    """Return "msg_" and 32 hex digits: 48 bits of milliseconds, so that ids sort by time, then 80 random ones."""
    return f"msg_{int(now.timestamp() * 1000):012x}{random_hex(10)}"
