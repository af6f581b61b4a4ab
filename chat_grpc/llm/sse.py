"""Decoding server-sent events as they arrive (WHATWG HTML, 9.2.6), split anywhere."""

from __future__ import annotations

MAX_LINE = 1 << 20
"""Bytes of one line after which a stream is taken to be no event stream."""


class LineTooLong(ValueError):
    """A line grew beyond MAX_LINE."""


class SSEDecoder:
    """Turns chunks of bytes into the data of events.

    Only ``data`` is kept: OpenAI's wire format uses no other field. An event
    counts when its empty line has arrived.
    """

    __slots__ = ("_data", "_tail")

    def __init__(self) -> None:
        self._tail = b""
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the data of the events that ``chunk`` completes.

        Raises:
            LineTooLong: the bytes are no event stream.
        """
        if (  # just one event in its usual form, as reads bring it when tokens come one by one
            chunk.endswith(b"\n\n")
            and chunk.startswith(b"data: ")
            and chunk.count(b"\n") == 2  # noqa: PLR2004 (the two at its end)
            and b"\r" not in chunk
            and not self._tail
            and not self._data
        ):
            return [chunk[6:-2]]
        text = self._tail + chunk if self._tail else chunk
        if b"\r" in text:
            # A last CR may be the first half of a CR LF: keep it back.
            held = b"\r" if text.endswith(b"\r") else b""
            text = text[: len(text) - len(held)].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
            lines = text.split(b"\n")
            self._tail = lines.pop() + held
        else:
            lines = text.split(b"\n")
            self._tail = lines.pop()
        if len(self._tail) > MAX_LINE:
            raise LineTooLong
        events = []
        data = self._data
        for line in lines:
            if line:
                if line.startswith(b"data:"):
                    data.append(line[6:] if line[5:6] == b" " else line[5:])
            elif data:
                events.append(data[0] if len(data) == 1 else b"\n".join(data))
                data.clear()
        return events
