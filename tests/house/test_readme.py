"""README.md keeps its word: its commands are run, in order, against what its own `make run` starts.

They run in a folder of links to the checkout, so that data/ is a new one, and
on free ports, which replace the README's.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.cli.conftest import clean_environment
from tests.cli.test_up import Up, free_ports

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
HANG_GUARD = 300
"""Long enough for `make run` to install everything first."""

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """Return the fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


COMMANDS = [line for block in blocks("sh") for line in block.splitlines() if line.strip()]


def says_sse(output: str) -> bool:
    """Tell whether a whole answer came as server-sent events."""
    events = [json.loads(line[6:]) for line in output.splitlines() if line.startswith("data: ")]
    kinds = [event["type"] for event in events]
    return kinds[0] == "retrieval" and "token" in kinds and kinds[-2:] == ["stats", "done"]


# What each command must print. A command that is not here, and not among the
# ones below, fails the test: whoever writes it into README.md says what it does.
EXPECTED: dict[str, Callable[[str], bool]] = {
    "curl -N localhost:3000/api/v1/chat": says_sse,
    "curl localhost:3000/api/v1/chat": lambda output: bool(json.loads(output)["content"]),
    "curl localhost:3000/v1/chat/completions": lambda output: bool(
        json.loads(output)["choices"][0]["message"]["content"]
    ),
    "curl localhost:3000/api/v1/health": lambda output: json.loads(output)["status"] == "healthy",
    ".venv/bin/grpcurl -plaintext localhost:50052 list": lambda output: "chat.v1.ChatService\n" in output,
    ".venv/bin/grpcurl -plaintext -d": lambda output: '"completed"' in output,
    ".venv/bin/grpcurl -plaintext localhost:50052 grpc.health.v1.Health/Check": lambda output: "SERVING" in output,
    '.venv/bin/chat-grpc chat "': lambda output: bool(output.strip()),
    'echo "How do I add my own documents?" | .venv/bin/chat-grpc chat -': lambda output: "ingest" in output,
    ".venv/bin/chat-grpc history --user ada": lambda output: "> What happens when memvid is down?" in output,
    ".venv/bin/chat-grpc health": lambda output: output.startswith("healthy"),
    ".venv/bin/chat-grpc ingest docs": lambda output: "data/mine.mv2: " in output,
}
# Commands that go on until somebody ends them, or that run this very test.
SPECIAL = ("make run", "make run LLM=local", "make test", ".venv/bin/chat-grpc chat")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Links to everything in the checkout but data/ and .env."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for entry in ROOT.iterdir():
        if entry.name not in ("data", ".env", ".git"):
            (folder / entry.name).symlink_to(entry)
    return folder


@asynccontextmanager
async def running(command: str, folder: Path) -> AsyncIterator[Up]:
    """Run a command that goes on until it is ended, which it must do well."""
    environment = clean_environment(**free_ports())
    process = await asyncio.create_subprocess_exec(
        *command.split(),
        cwd=folder,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    started = Up(process, environment)
    try:
        async with asyncio.timeout(HANG_GUARD):
            await started.says("Ctrl-C stops everything")
        yield started
    finally:
        below = started.children()
        # As a terminal does: Ctrl-C reaches make and what it runs.
        os.killpg(process.pid, signal.SIGINT)
        await started.ends()
    assert "did not stop" not in started.output
    assert [each for each in below if each.is_running()] == []


async def run(command: str, stack: Up, folder: Path, stdin: str = "") -> str:
    """Run a command of the README in a shell, on the ports of the stack; return its stdout."""
    for port, name in (("3000", "CHAT_HTTP_PORT"), ("50052", "CHAT_GRPC_PORT")):
        command = command.replace(f"localhost:{port}", f"localhost:{stack.environment[name]}")
    process = await asyncio.create_subprocess_exec(
        *("bash", "-o", "pipefail", "-c", command),
        cwd=folder,
        env=stack.environment,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(HANG_GUARD):
        stdout, stderr = await process.communicate(stdin.encode())
    assert process.returncode == 0, f"{command}\n{stdout.decode()}{stderr.decode()}"
    return stdout.decode()


def test_every_command_is_known() -> None:
    assert set(SPECIAL) <= set(COMMANDS)
    unknown = [command for command in COMMANDS if command not in SPECIAL and expectation(command) is None]
    assert unknown == []
    unused = [start for start in EXPECTED if not any(command.startswith(start) for command in COMMANDS)]
    assert unused == []


def expectation(command: str) -> Callable[[str], bool] | None:
    """Return what a command must print: the longest beginning of it that is known."""
    starts = [start for start in EXPECTED if command.startswith(start)]
    return EXPECTED[max(starts, key=len)] if starts else None


async def test_the_tour(checkout: Path) -> None:
    assert COMMANDS[0] == "make run"
    async with running(COMMANDS[0], checkout) as stack:
        for command in COMMANDS:
            expected = expectation(command)
            if command not in SPECIAL and expected is not None:
                output = await run(command, stack, checkout)
                assert expected(output), f"{command}\n{output}"

        conversation = await run(
            ".venv/bin/chat-grpc chat", stack, checkout, stdin="How do I run it?\n/history\n/quit\n"
        )
        assert "> How do I run it?" in conversation

        (example,) = blocks("python")
        assert "localhost:50052" in example
        example = example.replace("50052", stack.environment["CHAT_GRPC_PORT"])
        (checkout / "example.py").write_text(example, encoding="utf-8")
        assert "extractive/" in await run(".venv/bin/python example.py", stack, checkout)


async def test_the_local_model(checkout: Path) -> None:
    async with running("make run LLM=local", checkout) as stack:
        assert "llm " in stack.output
        await run('.venv/bin/chat-grpc chat "Say hello." --user ada', stack, checkout)
        history = await run(".venv/bin/chat-grpc history --user ada --json", stack, checkout)
        message = json.loads(history)
        assert message["status"] == "STATUS_COMPLETED"
        assert message["model"].startswith("local/")


async def test_the_test_command_is_the_one_that_runs_this(checkout: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *("make", "--dry-run", "--always-make", "test"), cwd=checkout, stdout=asyncio.subprocess.PIPE
    )
    stdout, _ = await process.communicate()
    assert process.returncode == 0
    assert "-m pytest" in stdout.decode()
    assert "\nmake test\n" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
