"""Random bytes in a file that only its owner may read, made once."""

from __future__ import annotations

import os
import secrets
import tempfile
from contextlib import suppress
from pathlib import Path

from chat_grpc.errors import StorageUnavailable

SECRET_BYTES = 32


def read_or_make(path: Path) -> bytes:
    """Return the secret in a file, and make the file if there is none; processes that start together agree.

    Raises:
        StorageUnavailable: the file can't be read or made, or does not hold a secret.
    """
    try:
        if not path.exists():
            _make(path)
        secret = path.read_bytes()
    except OSError as error:
        raise StorageUnavailable(
            f"the file {path}, which page tokens are signed with, can't be used ({error.strerror}); "
            "set CHAT_PAGE_TOKEN_SECRET instead"
        ) from error
    if len(secret) != SECRET_BYTES:
        raise StorageUnavailable(
            f"the file {path}, which page tokens are signed with, is damaged; delete it, and a new one is made"
        )
    return secret


def _make(path: Path) -> None:
    """Write a file of another name, then name it: so it is whole or not there, and the first of several wins."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)  # mode 600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(SECRET_BYTES))
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(name, path)
    finally:
        Path(name).unlink()
