"""``chat-grpc admin key``: making, listing and taking back API keys."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from chat_grpc.auth import keys
from chat_grpc.conversation.rules import is_user_id
from chat_grpc.settings import Settings

USAGE = 2


def run(settings: Settings, action: str, name: str, scopes: Sequence[str]) -> int:
    """Do what is asked for with the file of keys, and return the exit code. A key goes to stdout, once."""
    if not settings.api_keys_file:
        return _fail("CHAT_API_KEYS_FILE is not set; for example CHAT_API_KEYS_FILE=./data/api-keys.jsonl", USAGE)
    if action != "list" and not is_user_id(name):
        return _fail("NAME must be 3 to 100 characters of A-Z a-z 0-9 . _ @ : -", USAGE)
    path = Path(settings.api_keys_file)
    try:
        if action == "list":
            return _list(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path):
            return _add(path, name, scopes) if action == "add" else _remove(path, name)
    except OSError:
        return _fail(f"{path} can't be read or written")


def _list(path: Path) -> int:
    for key in _known(path):
        created = f"{key.created:%Y-%m-%d %H:%M}" if key.created else "-"
        print(f"{key.name}\t{' '.join(key.scopes) or '-'}\t{created}")
    return 0


def _add(path: Path, name: str, scopes: Sequence[str]) -> int:
    known = _known(path)
    if any(key.name == name for key in known):
        return _fail(f"{name} has a key already; `chat-grpc admin key remove {name}` takes it back")
    kept, key = keys.make(name, scopes)
    keys.write(path, [*known, kept])
    print(key)
    print("this is the only time that the key is shown; what is kept of it can't be turned back", file=sys.stderr)
    return 0


def _remove(path: Path, name: str) -> int:
    known = _known(path)
    left = [key for key in known if key.name != name]
    if len(left) == len(known):
        return _fail(f"{name} has no key")
    keys.write(path, left)
    return 0


def _known(path: Path) -> list[keys.ApiKey]:
    return keys.read(path) if path.exists() else []


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep others from changing the file meanwhile: each of them writes it as a whole."""
    lock = os.open(path.with_name(f".{path.name}.lock"), os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _fail(why: str, code: int = 1) -> int:
    print(f"chat-grpc: {why}", file=sys.stderr)
    return code
