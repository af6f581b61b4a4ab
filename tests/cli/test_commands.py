"""What every command has in common: usage, settings, .env, versions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from chat_grpc import __version__
from tests.cli.conftest import Cli, clean_environment

COMMANDS = ("up", "serve", "memvid", "envoy", "llama", "ingest", "chat", "history", "health", "admin")


async def test_version(cli: Cli) -> None:
    done = await cli("--version")
    assert (done.code, done.stdout) == (0, f"chat-grpc {__version__}\n")


async def test_help_lists_every_command(cli: Cli) -> None:
    done = await cli("--help")
    assert done.code == 0
    assert [command for command in COMMANDS if f"\n    {command} " not in done.stdout] == []


@pytest.mark.parametrize("command", COMMANDS)
async def test_every_command_explains_itself(cli: Cli, command: str) -> None:
    done = await cli(command, "--help")
    assert done.code == 0
    assert f"usage: chat-grpc {command}" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nonsense",),
        ("history",),
        ("history", "--user", "ada", "--session", "x"),
        ("history", "--user", "ada", "--limit", "0"),
        ("history", "--user", "ada", "--limit", "many"),
        ("ingest", "--out", "x.mv2"),
        ("up", "--llm", "cloud"),
        ("llama", "--port", "70000"),
        ("admin",),
        ("admin", "backup"),
        ("admin", "import", "a", "b"),
    ],
)
async def test_wrong_usage(cli: Cli, arguments: tuple[str, ...]) -> None:
    done = await cli(*arguments)
    assert done.code == 2
    assert done.stdout == ""
    assert "usage: chat-grpc" in done.stderr


async def test_faulty_settings_are_all_named(cli: Cli) -> None:
    done = await cli("health", CHAT_GRPC_PORT="high", CHAT_LOG_LEVEL="LOUD")
    assert done.code == 2
    assert done.stdout == ""
    assert "CHAT_GRPC_PORT='high'" in done.stderr
    assert "CHAT_LOG_LEVEL='LOUD'" in done.stderr
    assert "Traceback" not in done.stderr


async def test_a_misspelt_setting_is_mentioned(cli: Cli) -> None:
    done = await cli("health", "--address", "localhost:1", CHAT_GRPC_PROT="1")
    assert "warning: CHAT_GRPC_PROT is no setting of chat-grpc" in done.stderr


async def test_dotenv_is_read_and_the_environment_goes_before_it(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("CHAT_GRPC_PORT=1\n", encoding="utf-8")
    assert "localhost:1;" in (await cli("health")).stderr
    assert "localhost:2;" in (await cli("health", CHAT_GRPC_PORT="2")).stderr


def test_serve_imports_nothing_that_only_other_commands_need() -> None:
    code = (
        "import sys, chat_grpc.cli, chat_grpc.app;"
        "print(*{name.partition('.')[0] for name in sys.modules}"
        " & {'rich', 'yaml', 'honcho', 'memvid_sdk', 'xllamacpp', 'betterproto2', 'pypdf', 'markdown_it'})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=clean_environment()
    )
    assert done.stdout.split() == []
