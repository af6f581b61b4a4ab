"""Structured logs: structlog makes the lines, the standard library's logging carries them.

So the lines of libraries, which know logging only, take the same form.
"""

from __future__ import annotations

import logging
import sys
import traceback
from datetime import UTC, datetime
from functools import partial
from typing import Any

import msgspec

from chat_grpc.settings import Settings
from chat_grpc.telemetry import context

# structlog imports rich where it finds it, for tracebacks in colours. No line
# here has any, and the import would take 70 ms on top of structlog's own 30.
_unseen = "rich" not in sys.modules
if _unseen:
    sys.modules["rich"] = None  # type: ignore[assignment]  # it is how Python is told that a module can't be imported
try:
    import structlog
finally:
    if _unseen:
        del sys.modules["rich"]

Log = structlog.stdlib.BoundLogger

OWN = ("chat_grpc", "gateway")
"""The packages of this program."""


def get(name: str) -> Log:
    """Return the log of a module. It takes fields as keywords: ``log.info("kept", message_id=...)``."""
    log: Log = structlog.wrap_logger(
        logging.getLogger(name),
        processors=[structlog.stdlib.filter_by_level, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=Log,
        context_class=dict,
        cache_logger_on_first_use=True,
    )
    return log


def configure(settings: Settings, *, worker: int | None = None) -> None:
    """Send all logs to stderr, in the form and from the level that the settings say.

    Every line of a process that is one of several workers holds its number.

    The level is this program's own. Of libraries only warnings are kept: what
    they say below may hold the texts of messages (aiosqlite) and keys (litellm).
    """
    # What no line here tells needs not be found out for each (Python's logging HOWTO, "Optimization").
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(worker) if settings.log_format == "json" else TextFormatter(worker))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for package in OWN:
        logging.getLogger(package).setLevel(settings.log_level)


class JsonFormatter(structlog.stdlib.ProcessorFormatter):
    """One JSON object a line: time, level, logger, event, request_id, trace_id, span_id, then the record's fields."""

    def __init__(self, worker: int | None = None) -> None:
        super().__init__(processors=[partial(_facts, worker), structlog.processors.JSONRenderer(serializer=_json)])


class TextFormatter(structlog.stdlib.ProcessorFormatter):
    """One line for people: time, level, event, then the fields as name=value; below it the frames of an exception."""

    def __init__(self, worker: int | None = None) -> None:
        super().__init__(processors=[partial(_facts, worker), _text])


def _facts(
    worker: int | None, _logger: Any, _method: str, said: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Put what a line tells into the order of all lines. A field that is None is left out."""
    record: logging.LogRecord = said.pop("_record")
    del said["_from_structlog"]
    error = said.pop("exc_info", None)
    facts: dict[str, Any] = {
        "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
        "level": record.levelname,
        "logger": record.name,
        "event": said.pop("event"),
    }
    if worker is not None:
        facts["worker"] = worker
    if request_id := context.request_id():
        facts["request_id"] = request_id
    if (place := context.trace()) is not None:
        facts["trace_id"] = place.trace_id
        facts["span_id"] = place.span_id
    facts.update((name, value) for name, value in said.items() if value is not None)
    if isinstance(error, tuple):
        error = error[1]
    if isinstance(error, BaseException):
        # The text of an exception may quote a message or a key: its type and
        # where it came from are logged, its text is not.
        facts["exception"] = f"{type(error).__module__}.{type(error).__qualname__}"
        facts["frames"] = [
            f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)
        ]
    return facts


def _json(facts: Any, **_: Any) -> str:
    return msgspec.json.encode(facts, enc_hook=str).decode()


def _text(_logger: Any, _method: str, facts: structlog.typing.EventDict) -> str:
    frames = facts.pop("frames", [])
    facts.pop("logger")
    head = f"{facts.pop('time')[11:23]} {facts.pop('level'):<7} {facts.pop('event')}"
    tail = "".join(f" {name}={value}" for name, value in facts.items())
    return "\n    ".join([head + tail, *frames])
