"""The public keys of those who sign tokens: a JWK set from a file or a URL, read again when keys are rotated."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from chat_grpc.auth.exposure import is_safe_url
from chat_grpc.errors import Unavailable
from chat_grpc.telemetry import logs

log = logs.get(__name__)

MAX_BYTES = 256 * 1024
"""What a set may take; those of large providers take 10 KiB."""
FETCH_SECONDS = 5.0
RETRY_SECONDS = 5.0
"""How soon a source that has never given a key is asked again."""
MIN_RSA_BITS = 2048

Keys = Mapping[tuple[str, str], Any]
"""Public keys by their id ("" for one without) and the one algorithm that each may be used with."""


class Source(Protocol):
    """Where a set is read from.

    Attributes:
        seconds: how long a set is good for, until it is read again beside the requests.
        unknown_seconds: how often at most a key that is not in it has it read at once.
    """

    seconds: float
    unknown_seconds: float

    def read(self) -> bytes:
        """Return the set as it is now; takes a while, and so runs on a thread.

        Raises:
            OSError: it can't be read, or is too large.
        """


class FileSource:
    """A file. Looking at it costs next to nothing, so that a change counts within a second or two."""

    seconds = 2.0
    unknown_seconds = 0.5

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> bytes:
        """Return the file's bytes."""
        with self._path.open("rb") as file:
            return _bounded(file.read(MAX_BYTES + 1))


class UrlSource:
    """An address, over HTTPS or from this machine.

    Redirects are not followed: they could lead anywhere, also out of HTTPS.
    """

    seconds = 600.0
    unknown_seconds = 60.0

    def __init__(self, url: str) -> None:
        if not is_safe_url(url):
            raise ValueError("a JWK set is fetched over https, or over http from this machine")
        self._url = url

    def read(self) -> bytes:
        """Fetch it; both its size and the time that takes are bounded."""
        from http.client import HTTPException
        from urllib.request import HTTPRedirectHandler, Request, build_opener

        class NoRedirect(HTTPRedirectHandler):
            def redirect_request(self, *_: object) -> None:
                return None

        until = time.monotonic() + FETCH_SECONDS
        request = Request(self._url, headers={"accept": "application/json"})  # noqa: S310 (the scheme was checked)
        gathered = b""
        try:
            with build_opener(NoRedirect).open(request, timeout=FETCH_SECONDS) as response:
                # Piece by piece: the timeout above is for each read, and somebody might send a byte a second.
                while piece := response.read1(16_384):
                    gathered = _bounded(gathered + piece)
                    if time.monotonic() > until:
                        raise TimeoutError
        except HTTPException as error:
            raise OSError("not HTTP") from error
        return gathered


class RotatingKeys:
    """The keys of a source, as they were last read.

    A request waits for them only if it shows a key that is not known. What is
    known stays known while the source can't be read.

    Args:
        source: where the set is.
        clock: what tells the time, in seconds.
    """

    algorithms = frozenset({"RS256", "ES256"})

    def __init__(self, source: Source, clock: Callable[[], float] = time.monotonic) -> None:
        self._source = source
        self._clock = clock
        self._keys: Keys = {}
        self._raw = b""
        self._generation = 0
        self._tried: float | None = None
        self._asked: float | None = None
        """When a key that is not known had the set read."""
        self._reading: asyncio.Task[None] | None = None

    def generation(self) -> int:
        """Return a number that changes when the keys do; have them read again if it is time."""
        if self._tried is None or self._clock() - self._tried >= self._source.seconds:
            self._begin()
        return self._generation

    async def open(self) -> None:
        """Read the set for the first time, if nobody has yet."""
        if not self._keys:
            await asyncio.shield(self._begin())

    async def find(self, kid: str, algorithm: str) -> Any:
        """Return the key of an id, None if there is none of it for this algorithm.

        Raises:
            Unavailable: the set could not be read so far.
        """
        key = self._known(kid, algorithm)
        if key is None and self._reading is not None and not self._reading.done():
            await asyncio.shield(self._reading)
            key = self._known(kid, algorithm)
        if key is None and self._may_ask():
            await asyncio.shield(self._begin())
            key = self._known(kid, algorithm)
        if not self._keys:
            raise Unavailable(
                "tokens can't be checked now, for their issuer's keys can't be read; try again in a moment",
                reason="AUTH_UNAVAILABLE",
                retry_after=RETRY_SECONDS,
            )
        return key

    async def close(self) -> None:
        """Leave a reading that is under way."""
        if self._reading is not None:
            self._reading.cancel()

    def _known(self, kid: str, algorithm: str) -> Any:
        if kid:
            return self._keys.get((kid, algorithm))
        # A token that names no key can only mean the one there is.
        fit = [key for (_, known), key in self._keys.items() if known == algorithm]
        return fit[0] if len(fit) == 1 else None

    def _may_ask(self) -> bool:
        """Tell whether the set may be read now because of a key that is not known: anybody can invent such a key."""
        now = self._clock()
        seconds = self._source.unknown_seconds if self._keys else RETRY_SECONDS
        last = self._asked if self._keys else self._tried
        if last is not None and now - last < seconds:
            return False
        self._asked = now
        return True

    def _begin(self) -> asyncio.Task[None]:
        if self._reading is None or self._reading.done():
            self._tried = self._clock()
            self._reading = asyncio.ensure_future(self._read())
        return self._reading

    async def _read(self) -> None:
        try:
            async with asyncio.timeout(2 * FETCH_SECONDS):  # a name may take long to resolve
                raw = await asyncio.to_thread(self._source.read)
            if raw == self._raw:
                return
            keys = parse(raw)
        except (OSError, TimeoutError, ValueError, RecursionError):
            log.warning("the keys that tokens are signed with can't be read", known=len(self._keys))
            return
        self._keys, self._raw = keys, raw
        self._generation += 1
        log.info("read the keys that tokens are signed with", count=len(keys))


def parse(raw: bytes) -> Keys:
    """Return the keys of a JWK set that are fit for signatures: RSA of at least 2,048 bits, and EC on P-256.

    Others are left out, symmetric and private ones above all.

    Raises:
        ValueError: it is no JWK set, or none of its keys is fit.
    """
    from jwt import PyJWK, PyJWTError

    document = json.loads(raw)
    listed = document.get("keys") if isinstance(document, dict) else None
    keys: dict[tuple[str, str], Any] = {}
    for item in listed if isinstance(listed, list) else ():
        if not isinstance(item, dict) or "d" in item or item.get("use", "sig") != "sig":
            continue
        kind = f"{item.get('kty')} {item.get('crv', '')}".strip()
        algorithm = {"RSA": "RS256", "EC P-256": "ES256"}.get(kind)
        if algorithm is None or item.get("alg", algorithm) != algorithm:
            continue
        try:
            key = PyJWK(item, algorithm).key
        except (PyJWTError, ValueError, TypeError):
            continue
        if algorithm == "ES256" or key.key_size >= MIN_RSA_BITS:
            keys[str(item.get("kid") or ""), algorithm] = key
    if not keys:
        raise ValueError("no key is fit")
    return keys


def source_of(place: str) -> Source:
    """Return where a set is: at a URL, or in a file."""
    return UrlSource(place) if "://" in place else FileSource(Path(place))


def _bounded(data: bytes) -> bytes:
    if len(data) > MAX_BYTES:
        raise OSError("too large")
    return data
