"""``chat-grpc admin``: what is done to the service by those who run it. Each command is a module of terminal/admin.

This is imported for every command, so it imports nothing but argparse.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from chat_grpc.settings import Settings

    Command = Callable[[argparse.Namespace, Settings], int]

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Give the parser of ``chat-grpc admin`` its commands."""
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, command: Command, summary: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        sub.set_defaults(command=command)
        return sub

    backup = add("backup", _backup, "copy the SQLite database to a file while the server goes on")
    backup.add_argument("file", type=Path, metavar="FILE", help="the copy, a database of its own")
    backup.add_argument("--force", action="store_true", help="overwrite FILE if it is there")
    _add_database(backup)

    export = add("export", _export, "write all messages to a file, as JSON Lines")
    export.add_argument("file", metavar="FILE", help="the file to write; - is stdout")
    export.add_argument("--force", action="store_true", help="overwrite FILE if it is there")
    export.add_argument("--restart", action="store_true", help="begin anew where an export was interrupted")
    _add_database(export)

    take = add("import", _import, "add the messages of an exported file to the database")
    take.add_argument("file", metavar="FILE", help="what `chat-grpc admin export` has written; - is stdin")
    take.add_argument("--restart", action="store_true", help="begin anew where an import was interrupted")
    _add_database(take)

    _add_database(add("create-table", _create_table, "make the DynamoDB table that servers share"))

    token = add("token", _token, "sign a token with CHAT_JWT_SECRET, to try things out")
    token.add_argument("--user", required=True, metavar="NAME", help="the user whose token it is")
    token.add_argument("--scopes", default="", metavar="WORDS", help='what it allows beyond that, such as "chat:admin"')
    token.add_argument("--ttl", type=_seconds, default=3600, metavar="TIME", help="how long it is good (default: 1h)")

    key = add("key", _key, "make, list and take back API keys (CHAT_API_KEYS_FILE)")
    key.add_argument("action", choices=["add", "list", "remove"], metavar="add|list|remove", help="what to do")
    key.add_argument("name", nargs="?", default="", metavar="NAME", help="the user whose key it is, for add and remove")
    key.add_argument("--scopes", default="", metavar="WORDS", help='what it allows beyond that, such as "chat:admin"')


def _add_database(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--database", metavar="URL", help="the database (default: CHAT_DATABASE_URL)")


def _backup(options: argparse.Namespace, settings: Settings) -> int:
    from chat_grpc.terminal.admin import backup, running

    return running.run(lambda: backup.run(running.of(settings, options.database), options.file, force=options.force))


def _export(options: argparse.Namespace, settings: Settings) -> int:
    from chat_grpc.terminal.admin import exporting, running

    return running.run(
        lambda: exporting.run(
            running.of(settings, options.database), options.file, force=options.force, restart=options.restart
        )
    )


def _import(options: argparse.Namespace, settings: Settings) -> int:
    from chat_grpc.terminal.admin import importing, running

    return running.run(
        lambda: importing.run(running.of(settings, options.database), options.file, restart=options.restart)
    )


def _create_table(options: argparse.Namespace, settings: Settings) -> int:
    from chat_grpc.terminal.admin import create_table, running

    return running.run(lambda: create_table.run(running.of(settings, options.database)))


def _seconds(text: str) -> int:
    match = re.fullmatch(r"([1-9][0-9]{0,5})([smhd])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 90s, 15m, 1h or 7d")
    return int(match[1]) * UNITS[match[2]]


def _token(options: argparse.Namespace, settings: Settings) -> int:
    from chat_grpc.terminal.admin import token

    return token.run(settings, options.user, options.scopes.split(), options.ttl)


def _key(options: argparse.Namespace, settings: Settings) -> int:
    from chat_grpc.terminal.admin import key

    return key.run(settings, options.action, options.name, options.scopes.split())
