"""Running `chat-grpc` as people do: a process of its own, its stdout and stderr apart."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

HANG_GUARD = 60


@dataclass
class Done:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str


Cli = Callable[..., Awaitable[Done]]


def clean_environment(**variables: str) -> dict[str, str]:
    """Return this process's environment without settings of chat-grpc, then with ``variables``."""
    aliases = {"PORT", "LOG_LEVEL", "LLM_MODEL", "SESSION_TTL", "MEMVID_GRPC_URL", "OPENROUTER_API_KEY"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CHAT_") and name not in aliases}
    return {**kept, **variables}


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """Run ``chat-grpc`` in an empty folder and return how it ended."""

    async def run(*arguments: str, stdin: str = "", **variables: str) -> Done:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "chat_grpc", *arguments),
            cwd=tmp_path,
            env=clean_environment(**variables),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(HANG_GUARD):
                stdout, stderr = await process.communicate(stdin.encode())
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return Done(process.returncode or 0, stdout.decode(), stderr.decode())

    return run
