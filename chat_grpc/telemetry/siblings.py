"""The metrics of all workers, from any of them.

Whoever reads the metrics of a port that workers share reaches one of them, and
the next time perhaps another. So the one that is asked has the others tell it
theirs, over sockets in a folder that only this user can enter, and answers with
all of them: every sample with its worker's number.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from chat_grpc.telemetry import logs

log = logs.get(__name__)

TELL_SECONDS = 2.0
"""How long a worker may take to tell its metrics; the answer goes out without those of one that takes longer."""
_SOCKET = "metrics-"


class Siblings:
    """This worker among the others that share its port.

    Args:
        folder: where their sockets are.
        number: this worker's number.
        read: returns this worker's metrics in Prometheus's text format.
    """

    def __init__(self, folder: Path, number: int, read: Callable[[], Awaitable[bytes]]) -> None:
        self._folder = folder
        self._number = number
        self._read = read
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Tell whoever connects; where that can't be, say so and serve all the same."""
        try:
            self._server = await asyncio.start_unix_server(self._tell, self._folder / f"{_SOCKET}{self._number}")
        except OSError as error:  # something has cleaned up the folder
            log.warning("the other workers can't be told metrics", cause=error.strerror)

    async def close(self) -> None:
        """Tell nobody any more."""
        if self._server is not None:
            self._server.close()

    async def read_all(self) -> bytes:
        """Return the metrics of all workers that live."""
        paths = await asyncio.to_thread(lambda: sorted(self._folder.glob(f"{_SOCKET}*")))
        others = {number: path for path in paths if (number := int(path.name.removeprefix(_SOCKET))) != self._number}
        own, *told = await asyncio.gather(self._read(), *map(_ask, others.values()))
        texts = {self._number: own, **dict(zip(others, told, strict=True))}
        return merge({number: text for number, text in sorted(texts.items()) if text})

    async def _tell(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(await self._read())
            await writer.drain()
        except ConnectionError:
            log.debug("metrics were not waited for")
        finally:
            writer.close()


async def _ask(path: Path) -> bytes:
    """Return what a worker tells, nothing if it is dead or too slow."""
    try:
        async with asyncio.timeout(TELL_SECONDS):
            reader, writer = await asyncio.open_unix_connection(path)
            try:
                return await reader.read()
            finally:
                writer.close()
    except OSError:  # TimeoutError is one, too
        return b""


def merge(texts: Mapping[int, bytes]) -> bytes:
    """Return the metrics of several workers as one text, each family once, each sample with a label ``worker``."""
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for number, text in texts.items():
        name, new = "", False
        for line in text.decode().splitlines():
            if line.startswith("# HELP "):
                name = line.split(" ", 3)[2]
                new = name not in heads
                heads.setdefault(name, [])
                samples.setdefault(name, [])
            if line.startswith("#"):
                if new:
                    heads[name].append(line)
            else:
                samples[name].append(_labelled(line, number))
    return "".join(f"{line}\n" for name in heads for line in (*heads[name], *samples[name])).encode()


def _labelled(sample: str, number: int) -> str:
    name, _, value = sample.partition(" ")
    if "{" in name:
        name, _, rest = sample.partition("{")
        return f'{name}{{worker="{number}",{rest}'
    return f'{name}{{worker="{number}"}} {value}'
