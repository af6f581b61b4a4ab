"""Structured logs, carried by the standard library's logging.

So the lines of libraries, which know nothing else, take the same form.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

import msgspec

from chat_grpc.settings import Settings
from chat_grpc.telemetry import context

_encode = msgspec.json.Encoder(enc_hook=str).encode

OWN = ("chat_grpc", "gateway")
"""The packages of this program."""


class Log:
    """The log of a module. A line is an event in a few words, and fields: ``log.info("kept", message_id=...)``."""

    __slots__ = ("_logger",)

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, event: str, /, **fields: object) -> None:
        """Tell of what only those need who look for a fault."""
        self.log(logging.DEBUG, event, fields)

    def info(self, event: str, /, **fields: object) -> None:
        """Tell of what is as it should be."""
        self.log(logging.INFO, event, fields)

    def warning(self, event: str, /, **fields: object) -> None:
        """Tell of what somebody should look at some day."""
        self.log(logging.WARNING, event, fields)

    def error(self, event: str, /, **fields: object) -> None:
        """Tell of what somebody should look at now."""
        self.log(logging.ERROR, event, fields)

    def fault(self, event: str, error: BaseException, /, **fields: object) -> None:
        """Tell of an exception that nobody expected: its type and its frames."""
        self.log(logging.ERROR, event, fields, error)

    def log(self, level: int, event: str, fields: Mapping[str, object], error: BaseException | None = None) -> None:
        """Write a line of a level, if it is one that is kept. A field that is None is left out."""
        logger = self._logger
        if logger.isEnabledFor(level):
            fault = None if error is None else (type(error), error, error.__traceback__)
            extra = {"fields": fields}
            logger.handle(logger.makeRecord(logger.name, level, "", 0, event, (), fault, extra=extra))


def get(name: str) -> Log:
    """Return the log of a module."""
    return Log(name)


def configure(settings: Settings, *, worker: int | None = None) -> None:
    """Send all logs to stderr, in the form and from the level that the settings say.

    Every line of a process that is one of several workers holds its number.

    The level is this program's own. Of libraries only warnings are kept: what
    they say below may hold the texts of messages (aiosqlite) and keys (litellm).
    """
    # What no line here tells needs not be found out for each (Python's logging HOWTO, "Optimization").
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # noqa: SLF001 (as the HOWTO says)
    handler = _Handler(sys.stderr)
    handler.setFormatter(JsonFormatter(worker) if settings.log_format == "json" else TextFormatter(worker))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for package in OWN:
        logging.getLogger(package).setLevel(settings.log_level)


class _Handler(logging.StreamHandler[TextIO]):
    """Writes lines to a stream that passes each on by itself, as stderr does."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        try:
            self.stream.write(f"{self.format(record)}\n")
        except Exception:  # noqa: BLE001 (as logging's own handlers do: nothing that fails here may end the program)
            self.handleError(record)


class _Formatter(logging.Formatter):
    """Makes a line of what this program or a library logged."""

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
        "event": record.getMessage(),
    }
    if worker is not None:
        facts["worker"] = worker
    if request_id := context.request_id():
        facts["request_id"] = request_id
    if (place := context.trace()) is not None:
        facts["trace_id"] = place.trace_id
        facts["span_id"] = place.span_id
    fields: dict[str, Any] = getattr(record, "fields", {})
    facts.update({name: value for name, value in fields.items() if value is not None})
    error = record.exc_info[1] if record.exc_info else None
    if error is not None:
        # The text of an exception may quote a message or a key: its type and
        # where it came from are logged, its text is not.
        facts["exception"] = f"{type(error).__module__}.{type(error).__qualname__}"
        facts["frames"] = [
            f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)
        ]
    return facts
