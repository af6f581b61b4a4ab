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

    Attributes:
        between: all that came so far was whole events.
    """

    __slots__ = ("_data", "_tail", "between")

    def __init__(self) -> None:
        self.between = True
        self._tail = b""
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the data of the events that ``chunk`` completes.

        Raises:
            LineTooLong: the bytes are no event stream.
        """
        if self.between and chunk.startswith(b"data: ") and chunk.endswith(b"\n\n") and b"\r" not in chunk:
            # Whole events of one line each, as providers send them, need no look at each line.
            events = chunk[6:-2].split(b"\n\ndata: ")
            if chunk.count(b"\n") == 2 * len(events):
                return events
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
        self.between = not (self._tail or data)
        return events
