"""HTTP/1.1 to one origin, for responses that are read as they arrive (RFC 9112).

A general client does much for every piece of a body that a stream of tokens has
no use for. Here the bytes of a socket go through llhttp (httptools) to whoever
reads the body, and nothing else happens on the way. Compared with aiohttp on the
same stream: docs/performance.md.

What is not here, because no provider needs it: proxies, redirects, cookies,
compression (none is asked for), pipelining.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias, cast
from urllib.parse import SplitResult, urlsplit

from chat_grpc import __version__

if TYPE_CHECKING:
    import httptools

MAX_HEAD = 64 * 1024
"""Bytes of status line and headers after which a response is taken to be no HTTP."""
MAX_UNREAD = 256 * 1024
"""Bytes of body that wait for their reader before the socket is left alone."""
IDLE_SECONDS = 60.0
"""How long a connection is kept that nobody uses."""
HAPPY_EYEBALLS_SECONDS = 0.25
"""After which the next address is tried beside the first (RFC 8305, 8)."""

INFORMATIONAL = range(100, 200)

Note: TypeAlias = "Callable[[Connection], object]"


class HTTPError(Exception):
    """The origin could not be reached, broke the connection, or does not speak HTTP/1.1."""


class Origin:
    """Sends requests to one origin, over connections that are used again.

    Args:
        base_url: what the paths of requests are put behind; http or https.
        headers: what every request carries.
        connect_seconds: how long making a connection may take.

    Raises:
        ValueError: the address is none, or a header holds a line break.
    """

    def __init__(self, base_url: str, headers: Mapping[str, str], *, connect_seconds: float) -> None:
        self._url = url = _split(base_url)
        self._port = url.port or (443 if url.scheme == "https" else 80)
        self._connect_seconds = connect_seconds
        own = {"host": url.netloc.rpartition("@")[2], "user-agent": f"chat-grpc/{__version__}", **headers}
        self._head = _lines(own)
        self._tls: ssl.SSLContext | None = None
        self._idle: list[Connection] = []
        self._open: set[Connection] = set()
        self._sweeping: asyncio.TimerHandle | None = None

    async def open(self) -> None:
        """Load what a first request would wait for: the certificates that are trusted take 20 ms and more."""
        if self._url.scheme == "https" and self._tls is None:
            self._tls = await asyncio.to_thread(ssl.create_default_context)

    async def close(self) -> None:
        """Close all connections."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        for connection in tuple(self._open):
            connection.close()

    async def send(
        self,
        method: str,
        path: str,
        *,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        ready: Callable[[], Awaitable[None]] | None = None,
    ) -> Connection:
        """Send a request; ``response`` of what is returned is owed next.

        ``ready`` is awaited when nothing is left to do but to send. Cancelling
        this, or what comes after it, closes the connection, which tells an
        origin that works on the request to stop.

        Raises:
            HTTPError: it could not be sent.
        """
        message = self._message(method, path, headers or {}, body)
        connection = self._take_idle() or await self._connect()
        try:
            if ready is not None:
                await ready()
            connection.send(message)
        except BaseException:
            connection.close()
            raise
        return connection

    async def request(
        self, method: str, path: str, *, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Response:
        """Send a request, and return its response; see ``send`` and ``Connection.response``."""
        return await (await self.send(method, path, body=body, headers=headers)).response()

    def _message(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> bytes:
        length = f"content-length: {len(body)}\r\n" if body else ""
        own = _lines(headers) if headers else ""
        head = f"{method} {self._url.path}{path} HTTP/1.1\r\n{self._head}{own}{length}\r\n"
        return head.encode("latin-1") + body

    def _take_idle(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
        return None

    async def _connect(self) -> Connection:
        await self.open()
        loop = asyncio.get_running_loop()
        host = cast("str", self._url.hostname)
        try:
            async with asyncio.timeout(self._connect_seconds):
                addresses = await loop.getaddrinfo(host, self._port, type=_STREAM)
                where: dict[str, Any] = {"ssl": self._tls, "server_hostname": host if self._tls else None}
                address, port, *scope = addresses[0][4]
                if len(addresses) == 1 and not any(scope):
                    # Half the work, where there is nothing to choose: no socket that is watched twice.
                    where["host"], where["port"] = address, port
                else:
                    from aiohappyeyeballs import start_connection

                    where["sock"] = await start_connection(addresses, happy_eyeballs_delay=HAPPY_EYEBALLS_SECONDS)
                _, connection = await loop.create_connection(
                    lambda: Connection(self._gave_back, self._open.discard), **where
                )
        except (OSError, ssl.SSLError) as error:  # TimeoutError is an OSError
            raise HTTPError("no connection") from error
        self._open.add(connection)
        return connection

    def _gave_back(self, connection: Connection) -> None:
        """Keep a connection for the next request, for a while."""
        self._idle.append(connection)
        if self._sweeping is None:
            self._sweeping = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._sweep)

    def _sweep(self) -> None:
        """Close what nobody has used for a while; come back while there is more."""
        self._sweeping = None
        now = time.monotonic()
        while self._idle and now - self._idle[0].idle_since >= IDLE_SECONDS / 2:
            self._idle.pop(0).close()
        if self._idle:
            self._sweeping = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._sweep)


class Response:
    """The head of a response, and its body as it arrives.

    ``take`` and ``more`` are the two halves of reading: what is there is taken
    without waiting, and only when nothing is there one waits, for a plain future::

        while chunk := response.take() or await response.read():
            ...

    Attributes:
        status: the status code.
        headers: by lower-case name; of a name that comes twice, the last one.
    """

    __slots__ = ("_connection", "_pieces", "_push", "_size", "_waiter", "broken", "ended", "headers", "status")

    def __init__(self, connection: Connection, status: int, headers: dict[str, str], pieces: list[bytes]) -> None:
        self.status = status
        self.headers = headers
        self.ended = False
        """Whether all that will come has come; it may still have to be taken."""
        self.broken = False
        """Whether the body ended before its end."""
        self._connection = connection
        self._pieces = pieces
        self._size = 0
        self._push: Callable[[bytes], bool] | None = None
        self._waiter: asyncio.Future[None] | None = None

    def take(self) -> bytes:
        """Return what has arrived since, without waiting; b"" if that is nothing."""
        pieces = self._pieces
        if not pieces:
            return b""
        chunk = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        if self._size > MAX_UNREAD:
            self._connection.resume()
        self._size = 0
        return chunk

    def more(self) -> asyncio.Future[None]:
        """Return what is done as soon as there is something to take, or the body has ended. One reader at a time."""
        self._waiter = waiter = asyncio.get_running_loop().create_future()
        if self._pieces or self.ended:
            waiter.set_result(None)
        return waiter

    async def push(self, to: Callable[[bytes], bool]) -> None:
        """Have ``to`` called with what each read of the socket brings, right there, until it returns False.

        Returns when it has, or when something is there to be taken or the body
        has ended. Nobody is woken for what it takes.
        """
        self._push = to
        try:
            await self.more()
        finally:
            self._push = None

    async def read(self) -> bytes:
        """Return what has arrived, at least one byte; b"" at the end.

        Raises:
            HTTPError: the body was cut off.
        """
        while not (chunk := self.take()):
            if self.broken:
                raise HTTPError("the body was cut off")
            if self.ended:
                return b""
            await self.more()
        return chunk

    def release(self) -> None:
        """Be done with it: the connection serves the next request if the body has ended, and is closed if not."""
        if self._connection.serves(self):
            self._connection.release()

    def close(self) -> None:
        """Close the connection, if it is still this response's; whoever waits hears of a cut."""
        if self._connection.serves(self):
            self._connection.close()

    def arrived(self, size: int) -> None:
        """Hand over the pieces that a read of the socket brought, which was ``size`` bytes long with what framed them."""
        pieces, push = self._pieces, self._push
        if not pieces:
            return
        if push is None:
            self._size += size
            if self._size > MAX_UNREAD:
                self._connection.pause()
        elif len(pieces) == 1:
            if push(pieces.pop()):
                return
        else:
            chunk = b"".join(pieces)
            pieces.clear()
            if push(chunk):
                return
        self._push = None
        self._wake()

    def end(self, *, broken: bool) -> None:
        """Take note of the end."""
        if not self.ended:
            self.ended = True
            self.broken = broken
            self._wake()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():  # its reader may have been cancelled
                waiter.set_result(None)


class Connection(asyncio.Protocol):
    """One connection: one request at a time."""

    def __init__(self, give_back: Note, lost: Note) -> None:
        import httptools

        self._new_parser = httptools.HttpResponseParser
        self._parser_error = httptools.HttpParserError
        self._give_back = give_back
        self._lost = lost
        self._transport: asyncio.Transport | None = None
        self._feed: Callable[[bytes], None] | None = None
        """What parses the next bytes; None while none are expected."""
        self._asking: asyncio.Future[Response] | None = None
        self._head: asyncio.Future[Response]
        self._response: Response | None = None
        self._headers: dict[str, str] = {}
        self._head_size = 0
        self._prepare()
        self.idle_since = 0.0

    def _prepare(self) -> None:
        """Get ready for the next response, while nobody waits for it."""
        self._response = self._feed = None
        self._keep_alive = False
        """Whether the response has come to its end, and the connection may serve another."""
        self._pieces: list[bytes] = []
        self.on_body = self._pieces.append
        """What the parser calls with each piece of the body: the list's own method, so that no frame is needed."""
        self._parser: httptools.HttpResponseParser | None = self._new_parser(self)

    @property
    def usable(self) -> bool:
        """Tell whether a request can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    def send(self, request: bytes) -> None:
        """Send a request.

        Raises:
            HTTPError: it can't be sent.
        """
        if self._transport is None or self._transport.is_closing() or self._parser is None:
            raise HTTPError("the connection was closed meanwhile")
        self._feed = self._parser.feed_data
        self._head = self._asking = asyncio.get_running_loop().create_future()
        self._transport.write(request)

    async def response(self) -> Response:
        """Return the response to what was sent as soon as its head is there; the caller closes or releases it.

        Raises:
            HTTPError: there is none.
        """
        try:
            return await self._head
        except BaseException:
            self.close()
            raise

    def serves(self, response: Response) -> bool:
        """Tell whether the connection is this response's."""
        return self._response is response

    def release(self) -> None:
        """Let the next request have the connection, if it is fit for one."""
        if not self.usable:
            return
        if not self._keep_alive:
            self.close()
            return
        self._prepare()
        self.idle_since = time.monotonic()
        self._give_back(self)

    def close(self) -> None:
        """Close the connection at once, whatever is under way."""
        if self._transport is not None:
            self._transport.abort()

    def pause(self) -> None:
        """Leave the socket alone: its reader does not keep up."""
        if self.usable and self._transport is not None:
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self.usable and self._transport is not None:
            self._transport.resume_reading()

    # --- what the transport calls ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Parse what a read of the socket brought."""
        response, feed = self._response, self._feed
        if feed is None:
            self.close()  # nobody asked for anything, or for anything more
            return
        try:
            feed(data)
        except self._parser_error:
            self._fail("no HTTP/1.1")
            self.close()
        if response is None:
            response = self._response  # its head came with this
        if response is not None:
            response.arrived(len(data))

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever waits."""
        self._transport = None
        self._lost(self)
        self._fail("the connection was closed", by_error=exc is not None)
        self._parser = self._feed = None  # they know this connection: see Answering._run

    def _fail(self, why: str, *, by_error: bool = True) -> None:
        if self._asking is not None and not self._asking.done():
            self._asking.set_exception(HTTPError(why))
        if self._response is not None:
            # A body of no stated length ends with its connection (RFC 9112, 6.3).
            to_the_end = "content-length" not in self._headers and "transfer-encoding" not in self._headers
            self._response.end(broken=by_error or not to_the_end)

    # --- what the parser calls ---

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header."""
        self._head_size += len(name) + len(value)
        if self._head_size > MAX_HEAD:
            raise HTTPError("the head is too long")
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_message_begin(self) -> None:
        """Begin a response."""
        self._headers = {}
        self._head_size = 0

    def on_headers_complete(self) -> None:
        """Hand over the response."""
        assert self._parser is not None  # noqa: S101 (it is what calls this)
        status = self._parser.get_status_code()
        if status in INFORMATIONAL or self._asking is None:
            return
        self._response = Response(self, status, self._headers, self._pieces)
        if not self._asking.done():  # who asked may have been cancelled
            self._asking.set_result(self._response)
        self._asking = None

    def on_message_complete(self) -> None:
        """End the body."""
        if self._response is not None and self._parser is not None:
            self._keep_alive = self._parser.should_keep_alive()
            self._feed = None
            self._response.end(broken=False)


_STREAM = 1  # socket.SOCK_STREAM, without importing the module for it


def _split(base_url: str) -> SplitResult:
    url = urlsplit(base_url.rstrip("/"))
    if url.scheme not in {"http", "https"} or not url.hostname:
        raise ValueError("an address looks like http://127.0.0.1:8000/v1")
    return url


def _lines(headers: Mapping[str, str]) -> str:
    for name, value in headers.items():
        if not (name + value).isascii() or not (name + value).isprintable():
            raise ValueError(f"the header {name!r} holds what no header may hold")
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items())
