"""API keys: a file of names, scopes and salted hashes, one JSON object a line.

A key holds 256 bits of chance, so that nobody can guess one, however fast a
hash is computed. Stretching (scrypt, Argon2) makes up for what people choose
themselves and remember; here it would only make every request slow. So each
key is kept as HMAC-SHA256 under a salt of its own, which takes microseconds.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from chat_grpc.domain import Identity
from chat_grpc.errors import Unauthenticated
from chat_grpc.telemetry import logs

log = logs.get(__name__)

PREFIX = "cgk_"
"""Begins every key, so that it is not taken for a token, and programs that look for leaked secrets know it."""
LOOK_SECONDS = 1.0
"""How often at most the file is looked at."""


class ApiKey(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of the file: all that is known of a key but the key itself. ``salt`` and ``hash`` are hexadecimal."""

    id: str
    name: str
    salt: str
    hash: str
    scopes: tuple[str, ...] = ()
    created: datetime | None = None


def make(name: str, scopes: Iterable[str] = ()) -> tuple[ApiKey, str]:
    """Make a key for a user; return what is kept of it, and the key itself, which is kept nowhere."""
    key_id, salt, secret = secrets.token_hex(8), secrets.token_bytes(16), secrets.token_urlsafe(32)
    kept = ApiKey(
        key_id, name, salt.hex(), _hash(salt, secret), tuple(scopes), datetime.now(UTC).replace(microsecond=0)
    )
    return kept, f"{PREFIX}{key_id}_{secret}"


def read(path: Path) -> list[ApiKey]:
    """Return the keys of a file. A line that is none is left out, and the log says which.

    Raises:
        OSError: there is no such file, or it can't be read.
    """
    keys = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            key = msgspec.json.decode(line, type=ApiKey)
            bytes.fromhex(key.salt)
        except ValueError:  # msgspec's errors are of this kind too
            log.error("a line of the file of API keys is not one", line=number)  # noqa: TRY400 (an exception quotes it)
            continue
        keys.append(key)
    return keys


def write(path: Path, keys: Iterable[ApiKey]) -> None:
    """Replace a file of keys at once, so that no reader sees half of it. Only its owner may read it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.writelines(msgspec.json.encode(key) + b"\n" for key in keys)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


class KeyFile:
    """The keys of a file, read again when it changes. A file that is gone holds none.

    Args:
        path: the file.
        clock: what tells the time, in seconds.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._looked = -LOOK_SECONDS
        self._seen: tuple[int, int, int] | None = None
        self._keys: dict[str, tuple[bytes, str, Identity]] = {}

    def verify(self, key: str) -> Identity:
        """Return whose key it is.

        Raises:
            Unauthenticated: it is nobody's.
        """
        self._look()
        key_id, _, secret = key.removeprefix(PREFIX).partition("_")
        salt, expected, identity = self._keys.get(key_id, (b"", "", None))
        # Also for an id that is not there: how long this takes tells nothing of which there are.
        if not hmac.compare_digest(_hash(salt, secret), expected) or identity is None:
            raise Unauthenticated("the API key is not known here, or was taken back", reason="API_KEY_INVALID")
        return identity

    def _look(self) -> None:
        now = self._clock()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        try:
            stat = self._path.stat()
            seen = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if seen == self._seen:
                return
            keys = read(self._path)
        except OSError:
            # A key that was taken back must not work on because its file went missing.
            if self._keys or self._seen is None:
                log.error("the file of API keys can't be read; no key is taken")  # noqa: TRY400 (that says it all)
            self._keys, self._seen = {}, (0, 0, 0)
            return
        self._seen = seen
        self._keys = {
            key.id: (bytes.fromhex(key.salt), key.hash, Identity(key.name, frozenset(key.scopes))) for key in keys
        }


def _hash(salt: bytes, secret: str) -> str:
    return hmac.new(salt, secret.encode(), hashlib.sha256).hexdigest()
