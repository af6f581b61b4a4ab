"""HTTP/1.1 as the token path speaks it, against a server that writes whatever a test says."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from chat_grpc.llm.http1 import MAX_HEAD, MAX_UNREAD, HTTPError, Origin, Response
from tests.support.certificates import server_certificate

Script = Callable[["Peer"], Awaitable[None]]


class Peer:
    """The other side of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def request(self) -> tuple[str, bytes]:
        """Return the head and the body of the next request."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        _, found, length = head.partition("content-length: ")
        return head, await self.reader.readexactly(int(length.split("\r\n")[0])) if found else b""

    async def say(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def gone(self) -> None:
        """Return when the other side has closed the connection."""
        while await self.reader.read(65536):
            pass


class Server:
    def __init__(self, url: str) -> None:
        self.url = url
        self.connections = 0
        self.faults: list[BaseException] = []


@asynccontextmanager
async def serving(script: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server.connections += 1
        try:
            await script(Peer(reader, writer))
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client is done
        except BaseException as fault:
            server.faults.append(fault)
            raise
        finally:
            writer.close()

    listening = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=tls)
    server = Server(f"{'https' if tls else 'http'}://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1")
    async with listening:
        yield server
    assert not server.faults


@asynccontextmanager
async def origin_of(url: str, **headers: str) -> AsyncIterator[Origin]:
    origin = Origin(url, headers, connect_seconds=2.0)
    try:
        yield origin
    finally:
        await origin.close()


async def whole(response: Response) -> bytes:
    body = b""
    while piece := await response.read():
        body += piece
    response.release()
    return body


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-Twice: a\r\nX-TWICE: b\r\n\r\n"


async def test_a_request_is_written_as_it_was_asked_for() -> None:
    async def script(peer: Peer) -> None:
        head, body = await peer.request()
        lines = head.strip().split("\r\n")
        assert lines[0] == "POST /v1/chat/completions HTTP/1.1"
        assert f"host: {server.url[7:-3]}" in lines
        assert "authorization: Bearer k" in lines
        assert "x-more: yes" in lines
        assert body == b'{"a": 1}'
        await peer.say(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    async with serving(script) as server, origin_of(server.url, authorization="Bearer k") as origin:
        response = await origin.request("POST", "/chat/completions", body=b'{"a": 1}', headers={"x-more": "yes"})
        assert response.status == 200
        assert await whole(response) == b"ok"


async def test_each_piece_is_there_before_the_next_is_sent() -> None:
    taken = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(CHUNKED)
        for piece in (b"one", b"two"):
            taken.clear()
            await peer.say(b"%x\r\n%s\r\n" % (len(piece), piece))
            await taken.wait()
        await peer.say(b"0\r\n\r\n")

    async with serving(script) as server, origin_of(server.url) as origin:
        response = await origin.request("GET", "/")
        assert response.headers["x-twice"] == "b"
        assert await response.read() == b"one"
        assert response.take() == b""
        taken.set()
        assert await response.read() == b"two"
        taken.set()
        assert await response.read() == b""


async def test_what_arrives_is_pushed_where_it_arrives_until_it_is_not_wanted_any_more() -> None:
    taken = asyncio.Event()
    pushed: list[bytes] = []

    def take(chunk: bytes) -> bool:
        pushed.append(chunk)
        taken.set()
        return chunk != b"three"

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(CHUNKED)
        for pieces in ((b"one",), (b"two", b"and", b"more"), (b"three",), (b"four",)):
            # All chunks of one read come as one piece.
            await peer.say(b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces))
            await taken.wait()
            taken.clear()
        await peer.say(b"0\r\n\r\n")

    async with serving(script) as server, origin_of(server.url) as origin:
        response = await origin.request("GET", "/")
        take(await response.read())
        await response.push(take)
        assert pushed == [b"one", b"twoandmore", b"three"]
        assert await response.read() == b"four"
        taken.set()
        await response.push(take)  # nothing comes any more, and that ends it too
        assert response.ended
        assert not response.broken
        assert pushed == [b"one", b"twoandmore", b"three"]
        response.release()
        assert server.connections == 1


async def test_who_stops_waiting_for_what_is_pushed_is_not_called_again() -> None:
    pushed: list[bytes] = []
    go_on = asyncio.Event()

    def take(chunk: bytes) -> bool:
        pushed.append(chunk)
        return True

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(CHUNKED)
        await go_on.wait()
        await peer.say(b"3\r\none\r\n0\r\n\r\n")

    async with serving(script) as server, origin_of(server.url) as origin:
        response = await origin.request("GET", "/")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await response.push(take)
        go_on.set()
        assert await whole(response) == b"one"
        assert pushed == []


async def test_a_cut_ends_what_is_pushed() -> None:
    pushed: list[bytes] = []

    def take(chunk: bytes) -> bool:
        pushed.append(chunk)
        return True

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(CHUNKED + b"3\r\none\r\n")

    async with serving(script) as server, origin_of(server.url) as origin:
        response = await origin.request("GET", "/")
        while not response.ended:
            await response.push(take)
            pushed.append(response.take())
        assert b"".join(pushed) == b"one"
        assert response.broken


async def test_a_connection_serves_one_request_after_the_other() -> None:
    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.say(CHUNKED + b"2\r\nok\r\n0\r\n\r\n")

    async with serving(script) as server, origin_of(server.url) as origin:
        for _ in range(3):
            assert await whole(await origin.request("GET", "/")) == b"ok"
        assert server.connections == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
    ],
    ids=["connection: close", "HTTP/1.0"],
)
async def test_a_connection_that_ends_with_its_response_is_not_used_again(answer: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(answer)
        await peer.gone()

    async with serving(script) as server, origin_of(server.url) as origin:
        for number in (1, 2):
            assert await whole(await origin.request("GET", "/")) == b"ok"
            assert server.connections == number


async def test_a_connection_that_was_closed_meanwhile_is_not_used_again() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        closed.set()

    closed = asyncio.Event()
    async with serving(script) as server, origin_of(server.url) as origin:
        for _ in range(2):
            assert await whole(await origin.request("GET", "/")) == b"ok"
            await closed.wait()
            await asyncio.sleep(0.05)  # for the end of the connection to arrive
        assert server.connections == 2


async def test_a_released_response_does_not_touch_the_next_one() -> None:
    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.say(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    async with serving(script) as server, origin_of(server.url) as origin:
        first = await origin.request("GET", "/")
        assert await whole(first) == b"ok"
        second = await origin.request("GET", "/")
        first.close()
        first.release()
        assert await whole(second) == b"ok"


async def test_a_body_without_a_length_ends_with_the_connection() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(b"HTTP/1.1 200 OK\r\n\r\nto the end")

    async with serving(script) as server, origin_of(server.url) as origin:
        response = await origin.request("GET", "/")
        assert await whole(response) == b"to the end"
        assert not response.broken


@pytest.mark.parametrize(
    "cut", [CHUNKED + b"4\r\nhalf\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf"], ids=["chunked", "length"]
)
async def test_what_came_before_a_cut_is_read_first(cut: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(cut)

    async with serving(script) as server, origin_of(server.url) as origin:
        response = await origin.request("GET", "/")
        await asyncio.sleep(0.05)  # until the cut has arrived, too
        assert await response.read() == b"half"
        with pytest.raises(HTTPError):
            await response.read()


async def test_informational_responses_are_passed_over() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(
            b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\nHTTP/1.1 201 Made\r\ncontent-length: 2\r\n\r\nok"
        )

    async with serving(script) as server, origin_of(server.url) as origin:
        response = await origin.request("GET", "/")
        assert response.status == 201
        assert "link" not in response.headers
        assert await whole(response) == b"ok"


@pytest.mark.parametrize(
    "nonsense",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * MAX_HEAD + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n",
        b"",
    ],
    ids=["another protocol", "an endless head", "two lengths", "nothing"],
)
async def test_what_is_no_response_is_an_error(nonsense: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(nonsense)

    async with serving(script) as server, origin_of(server.url) as origin:
        with pytest.raises(HTTPError):
            await origin.request("GET", "/")


async def test_cancelling_a_request_closes_its_connection() -> None:
    asked, left = asyncio.Event(), asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        asked.set()
        try:
            await peer.gone()
        finally:
            left.set()

    async with serving(script) as server, origin_of(server.url) as origin:
        asking = asyncio.ensure_future(origin.request("GET", "/"))
        await asked.wait()
        asking.cancel()
        async with asyncio.timeout(5):
            await left.wait()
        with pytest.raises(asyncio.CancelledError):
            await asking


async def test_nobody_there_is_an_error() -> None:
    async with serving(lambda _: asyncio.sleep(0)) as server:
        url = server.url
    async with origin_of(url) as origin:
        with pytest.raises(HTTPError):
            await origin.request("GET", "/")


async def test_a_reader_who_does_not_keep_up_holds_the_sender_back() -> None:
    sent = 0
    stuck = asyncio.Event()
    size = 64 * 1024

    async def script(peer: Peer) -> None:
        nonlocal sent
        await peer.request()
        await peer.say(CHUNKED)
        while sent < 64 * MAX_UNREAD:
            peer.writer.write(b"%x\r\n%s\r\n" % (size, b"x" * size))
            try:
                async with asyncio.timeout(0.5):
                    await peer.writer.drain()
            except TimeoutError:
                stuck.set()
                await peer.writer.drain()
            sent += size
        await peer.say(b"0\r\n\r\n")

    async with serving(script) as server, origin_of(server.url) as origin:
        response = await origin.request("GET", "/")
        async with asyncio.timeout(20):
            await stuck.wait()
            assert sent < 64 * MAX_UNREAD
            assert len(await whole(response)) == sent


async def test_tls_is_checked_and_spoken(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    certificate = server_certificate("127.0.0.1")
    async with serving(script, certificate.server_context()) as server:
        async with origin_of(server.url) as origin:
            with pytest.raises(HTTPError):  # nobody vouches for it
                await origin.request("GET", "/")
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate.authority(tmp_path_factory.mktemp("tls"))))
        async with origin_of(server.url) as origin:
            assert await whole(await origin.request("GET", "/")) == b"ok"


@pytest.mark.parametrize("url", ["", "ftp://host/v1", "127.0.0.1:8000"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="looks like"):
        Origin(url, {}, connect_seconds=1.0)


@pytest.mark.parametrize("value", ["a\r\nx-more: b", "\u20ac"])
def test_a_header_cannot_bring_another_one_along(value: str) -> None:
    with pytest.raises(ValueError, match="authorization"):
        Origin("http://127.0.0.1:1", {"authorization": value}, connect_seconds=1.0)


async def test_the_second_address_is_taken_where_the_first_one_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(plainly) as server, origin_of(server.url.replace("127.0.0.1", "two-addresses.test")) as origin:
        loop = asyncio.get_running_loop()
        real = loop.getaddrinfo

        async def two(_: str, port: int, **how: int) -> list[object]:
            return [*await real("127.0.0.2", port, **how), *await real("127.0.0.1", port, **how)]

        monkeypatch.setattr(loop, "getaddrinfo", two)
        response = await origin.request("GET", "/")
        assert await response.read() == b"plain"
        assert server.connections == 1
        response.release()


async def plainly(peer: Peer) -> None:
    await peer.request()
    await peer.say(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nplain")
    await peer.gone()
