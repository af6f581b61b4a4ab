"""What the admin commands have in common: which database, and how they say what went wrong."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable

import msgspec

from chat_grpc.errors import ChatError
from chat_grpc.settings import DatabaseUrl, Settings


class CommandError(Exception):
    """A command can't be done; the text is one sentence that says what to do."""


def run(command: Callable[[], None]) -> int:
    """Run a command, say on stderr what went wrong, and return the exit code."""
    try:
        command()
    except ChatError as error:
        return _fail(error.message)
    except CommandError as error:
        return _fail(str(error))
    except BrokenPipeError:
        raise  # cli.py knows what to do
    except OSError as error:
        return _fail(f"{error.filename or 'the file'}: {error.strerror or 'system error'}")
    return 0


def of(settings: Settings, url: str | None) -> Settings:
    """Return the settings with another database, if one is named.

    Raises:
        CommandError: the URL is none.
    """
    if url is None:
        return settings
    try:
        return dataclasses.replace(settings, database_url=msgspec.convert(url, DatabaseUrl))
    except msgspec.ValidationError:
        raise CommandError(f"--database {url}: must be a URL such as sqlite+aiosqlite:///./data/chat.db") from None


def say(text: str) -> None:
    """Tell the user something on stderr; stdout is for what was asked for."""
    print(text, file=sys.stderr)


def sync_folder(path: str | os.PathLike[str]) -> None:
    """Have a folder's entries on the disk: a new name is not there before."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fail(text: str) -> int:
    say(f"chat-grpc: {text}")
    return 1
