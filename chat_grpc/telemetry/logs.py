"""Structured logs: structlog makes the lines, the standard library's logging carries them.

So the lines of libraries, which know logging only, take the same form.
"""

from __future__ import annotations

import logging
import sys
import traceback
from datetime import UTC, datetime
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

_TOLD = frozenset({"event", "exc_info"})
"""The fields of structlog's that have a place of their own in a line."""
_encode = msgspec.json.Encoder(enc_hook=str).encode

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
    logging._srcfile = None  # noqa: SLF001 (as the HOWTO says)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(worker) if settings.log_format == "json" else TextFormatter(worker))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for package in OWN:
        logging.getLogger(package).setLevel(settings.log_level)


class _Formatter(logging.Formatter):
    """Makes a line of what structlog or a library logged.

    structlog's own ProcessorFormatter copies each record and runs a chain of
    processors over it, which takes longer than making the line.
    """

    def __init__(self, worker: int | None = None) -> None:
        super().__init__()
        self._worker = worker

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; see the subclasses."""
        return self._line(_facts(record, self._worker))

    def _line(self, facts: dict[str, Any]) -> str:
        raise NotImplementedError


class JsonFormatter(_Formatter):
    """One JSON object a line: time, level, logger, event, request_id, trace_id, span_id, then the record's fields."""

    def _line(self, facts: dict[str, Any]) -> str:
        return _encode(facts).decode()


class TextFormatter(_Formatter):
    """One line for people: time, level, event, then the fields as name=value; below it the frames of an exception."""

    def _line(self, facts: dict[str, Any]) -> str:
        frames = facts.pop("frames", [])
        facts.pop("logger")
        head = f"{facts.pop('time')[11:23]} {facts.pop('level'):<7} {facts.pop('event')}"
        tail = "".join(f" {name}={value}" for name, value in facts.items())
        return "\n    ".join([head + tail, *frames])


def _facts(record: logging.LogRecord, worker: int | None) -> dict[str, Any]:
    """Return what a line tells, in the order of all lines. A field that is None is left out."""
    facts: dict[str, Any] = {
        "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
        "level": record.levelname,
        "logger": record.name,
    }
    error: Any = record.exc_info
    fields: dict[str, Any] = {}
    if isinstance(record.msg, dict):  # structlog's
        fields = record.msg
        facts["event"] = fields["event"]
        error = fields.get("exc_info", error)
    else:
        facts["event"] = record.getMessage()
    if worker is not None:
        facts["worker"] = worker
    if request_id := context.request_id():
        facts["request_id"] = request_id
    if (place := context.trace()) is not None:
        facts["trace_id"] = place.trace_id
        facts["span_id"] = place.span_id
    facts.update({name: value for name, value in fields.items() if value is not None and name not in _TOLD})
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
