"""Structured logs on the standard library's logging.

structlog would serve, but importing it (and rich with it) takes 0.27 s, a
quarter of what a start may take; what is used here of it fits this file.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import MutableMapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from chat_grpc.settings import Settings
from chat_grpc.telemetry import context


class Log(logging.LoggerAdapter[logging.Logger]):
    """A logger that takes fields as keywords: ``log.info("kept", message_id=...)``."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Move the keywords that logging does not know into the record."""
        known = {name: kwargs.pop(name) for name in ("exc_info", "stack_info", "stacklevel") if name in kwargs}
        fields = {name: value for name, value in kwargs.items() if value is not None}
        return msg, {**known, "extra": {"fields": fields}}


def get(name: str) -> Log:
    """Return the log of a module."""
    return Log(logging.getLogger(name), {})


def configure(settings: Settings) -> None:
    """Send all logs to stderr, in the form and from the level that the settings say."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else TextFormatter())
    logging.basicConfig(level=settings.log_level, handlers=[handler], force=True)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, event, request_id, then the record's fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        return msgspec.json.encode(_facts(record), enc_hook=str).decode()


class TextFormatter(logging.Formatter):
    """One line for people: time, level, event, then the fields as name=value."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line, followed by the frames of an exception."""
        facts = _facts(record)
        frames = facts.pop("frames", [])
        facts.pop("logger")
        head = f"{facts.pop('time')[11:23]} {facts.pop('level'):<7} {facts.pop('event')}"
        tail = "".join(f" {name}={value}" for name, value in facts.items())
        return "\n    ".join([head + tail, *frames])


def _facts(record: logging.LogRecord) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
        "level": record.levelname,
        "logger": record.name,
        "event": record.getMessage(),
    }
    if request_id := context.request_id():
        facts["request_id"] = request_id
    facts.update(getattr(record, "fields", {}))
    if record.exc_info and record.exc_info[1] is not None:
        # The text of an exception may quote a message or a key: its type and
        # where it came from are logged, its text is not.
        error = record.exc_info[1]
        facts["exception"] = f"{type(error).__module__}.{type(error).__qualname__}"
        facts["frames"] = [
            f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)
        ]
    return facts
