"""``chat-grpc``: the command line of every process and of the people who use them.

Exit codes: 0 done, 1 it could not be done, 2 the command or a setting is
wrong, 130 interrupted. What was asked for goes to stdout, the rest to stderr.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from chat_grpc import __version__, cli_admin

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from chat_grpc.settings import Settings
    from chat_grpc.terminal.connecting import Connection

    Command = Callable[[argparse.Namespace, Settings], int]

USAGE = 2
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = _parser().parse_args(argv)
    settings = _settings()
    if settings is None:
        return USAGE
    from chat_grpc.settings import SettingsError

    command: Command = options.command
    try:
        return command(options, settings)
    except KeyboardInterrupt:
        return INTERRUPTED
    except SettingsError as error:
        print(error, file=sys.stderr)
        return USAGE
    except BrokenPipeError:
        # The reader of our output, such as head, has seen enough. Without this
        # Python complains once more when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _settings() -> Settings | None:
    """Load .env and the settings; say what is wrong with them and return None."""
    from chat_grpc import settings as settings_module

    if Path(".env").is_file():
        from dotenv import load_dotenv

        load_dotenv(".env")
    try:
        settings = settings_module.load()
    except settings_module.SettingsError as error:
        print(error, file=sys.stderr)
        return None
    for name in settings_module.unknown():
        print(f"warning: {name} is no setting of chat-grpc; .env.example lists them all", file=sys.stderr)
    return settings


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="chat-grpc",
        description="A gRPC-native chat service, and its command line.",
        epilog="Settings come from the environment and from .env; .env.example lists them all.",
    )
    parser.add_argument("--version", action="version", version=f"chat-grpc {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, command: Command, summary: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        sub.set_defaults(command=command)
        return sub

    up = add("up", _up, "start memvid, the server and Envoy, and keep them running")
    up.add_argument("--llm", choices=["local"], help="answer with a local model, which is started too")

    serve = add("serve", _serve, "run the chat server")
    serve.add_argument(
        "--workers", type=_positive, metavar="N", help="how many processes share the port (default: CHAT_WORKERS)"
    )
    serve.add_argument("--worker", nargs=3, default=None, help=argparse.SUPPRESS)  # for workers.py's processes
    add("memvid", _memvid, "serve the memory (CHAT_MEMVID_FILE) as memvid.v1")
    add("envoy", _envoy, "run Envoy in front of the chat server")

    llama = add("llama", _llama, "serve a GGUF file with llama.cpp, in the OpenAI wire format")
    llama.add_argument("--model", type=Path, metavar="FILE", help="the GGUF file (default: the packaged SmolLM2)")
    llama.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: %(default)s)")
    llama.add_argument("--port", type=_port, default=8000, help="the port to listen on (default: %(default)s)")

    ingest = add("ingest", _ingest, "make a memory of Markdown, text and PDF files")
    ingest.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="a file, or a folder of files")
    ingest.add_argument("--out", required=True, type=Path, metavar="FILE", help="the .mv2 file to write")
    ingest.add_argument("--profile", type=Path, metavar="FILE", help="YAML: name, title, suggested_questions")

    chat = add("chat", _chat, "ask a question, or hold a conversation when none is given")
    chat.add_argument("question", nargs="?", metavar="QUESTION", help="the question; - reads it from stdin")
    chat.add_argument("--user", default="", metavar="NAME", help="whose history keeps the messages")
    chat.add_argument("--session", default="", metavar="UUID", help="continue this conversation")
    chat.add_argument("--no-passages", action="store_true", help="do not show the passages that were used")
    _add_address(chat)

    history = add("history", _history, "list messages, newest first")
    whose = history.add_mutually_exclusive_group(required=True)
    whose.add_argument("--user", default="", metavar="NAME", help="the messages of a user")
    whose.add_argument("--session", default="", metavar="UUID", help="the messages of a conversation")
    history.add_argument("--limit", type=_positive, default=10, metavar="N", help="how many (default: %(default)s)")
    history.add_argument("--json", action="store_true", help="one JSON object a line")
    _add_address(history)

    health = add("health", _health, "tell the state of the service; fails when it can't answer")
    health.add_argument("--json", action="store_true", help="one JSON object")
    _add_address(health)

    admin = commands.add_parser("admin", help="look after the service", description="Look after the service.")
    cli_admin.add_commands(admin)
    return parser


def _add_address(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--address", metavar="HOST:PORT", help="the chat server (default: localhost:CHAT_GRPC_PORT)")


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _port(text: str) -> int:
    highest = 65535
    if not text.isdecimal() or not 1 <= int(text) <= highest:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, 1 to {highest}")
    return int(text)


def _connection(options: argparse.Namespace, settings: Settings) -> Connection:
    from chat_grpc.terminal.connecting import Connection

    return Connection(options.address or f"localhost:{settings.grpc_port}", settings)


# The processes. Each is imported when it is asked for, so that none waits for
# the packages of another.


def _serve(options: argparse.Namespace, settings: Settings) -> int:
    if options.worker is not None:
        from chat_grpc.workers import Place

        place = Place.parse(options.worker)
        _configure_logs(settings, worker=place.number)
        from chat_grpc import app

        return app.run(settings, place)
    _configure_logs(settings)
    if (count := options.workers or settings.workers) > 1:
        from chat_grpc import workers

        return workers.run(settings, count)
    from chat_grpc import app

    return app.run(settings)


def _memvid(_: argparse.Namespace, settings: Settings) -> int:
    _configure_logs(settings)
    from chat_grpc.embedded import memvid_server

    return memvid_server.run(settings)


def _envoy(_: argparse.Namespace, settings: Settings) -> int:
    _configure_logs(settings)
    from chat_grpc.embedded import edge

    return edge.run(settings)


def _llama(options: argparse.Namespace, settings: Settings) -> int:
    _configure_logs(settings)
    from chat_grpc.embedded import llama

    return llama.run(options.model, options.host, options.port)


def _up(options: argparse.Namespace, settings: Settings) -> int:
    from chat_grpc.embedded import up

    return up.run(settings, llm=options.llm)


def _ingest(options: argparse.Namespace, _: Settings) -> int:
    from chat_grpc.embedded import ingest

    return ingest.run(options.paths, options.out, options.profile)


def _configure_logs(settings: Settings, *, worker: int | None = None) -> None:
    from chat_grpc.embedded import lifeline
    from chat_grpc.telemetry import logs

    lifeline.follow_parent()
    logs.configure(settings, worker=worker)


# The commands for people.


def _chat(options: argparse.Namespace, settings: Settings) -> int:
    connection = _connection(options, settings)
    if options.question is None:
        from chat_grpc.terminal import conversation

        return conversation.run(
            connection, user=options.user, session=options.session, show_passages=not options.no_passages
        )
    from chat_grpc.terminal import one_shot

    question = sys.stdin.read() if options.question == "-" else options.question
    return one_shot.run(
        connection, question, user=options.user, session=options.session, show_passages=not options.no_passages
    )


def _history(options: argparse.Namespace, settings: Settings) -> int:
    from chat_grpc.terminal import history

    return history.run(
        _connection(options, settings),
        user=options.user,
        session=options.session,
        limit=options.limit,
        as_json=options.json,
    )


def _health(options: argparse.Namespace, settings: Settings) -> int:
    from chat_grpc.terminal import health

    return health.run(_connection(options, settings), as_json=options.json)
