"""Servers that speak DynamoDB's protocol: Amazon's own DynamoDB Local, and moto."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import pytest

from tests.support.process import ROOT, free_port

JARS = ROOT / ".build" / "dynamodb-local"
POM = Path(__file__).parent / "dynamodb_local" / "pom.xml"
MAIN = "software.amazon.dynamodb.services.local.main.ServerRunner"


def fetch_dynamodb_local() -> Path:
    """Return the folder that holds DynamoDB Local; Maven fetches it the first time.

    Skips the test where there is no Java or no Maven, but not in CI.
    """
    for program in ("java", "mvn"):
        if shutil.which(program) is None:
            if os.environ.get("CI"):
                pytest.fail(f"DynamoDB Local needs {program}")
            pytest.skip(f"DynamoDB Local needs {program}, which is not installed")
    if not list(JARS.glob("DynamoDBLocal-*.jar")):
        part = JARS.with_name(f"{JARS.name}.{os.getpid()}")
        fetched = subprocess.run(
            ["mvn", "-q", "-B", "-f", str(POM), "dependency:copy-dependencies", f"-DoutputDirectory={part}"],
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        if fetched.returncode:
            if os.environ.get("CI"):
                pytest.fail(f"Maven can't fetch DynamoDB Local:\n{fetched.stdout[-2000:]}")
            pytest.skip("Maven can't fetch DynamoDB Local here")
        with suppress(OSError):  # another test run came first
            part.rename(JARS)
        shutil.rmtree(part, ignore_errors=True)
    return JARS


def dynamodb_local_command(port: int, *, folder: Path | None = None) -> list[str]:
    """Return the command that serves DynamoDB Local: in memory, or in a folder."""
    jars = fetch_dynamodb_local()
    where = ["-inMemory"] if folder is None else ["-dbPath", str(folder)]
    return [
        *("java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", f"-Djava.library.path={jars}"),
        *("-cp", f"{jars}/*", MAIN, "-port", str(port), "-sharedDb", "-disableTelemetry", *where),
    ]


def moto_command(port: int) -> list[str]:
    """Return the command that serves moto."""
    return [sys.executable, str(Path(__file__).with_name("moto_server.py")), str(port)]


@asynccontextmanager
async def serving(command: list[str], port: int) -> AsyncIterator[str]:
    """Run a server until the block ends; yield its URL once it answers."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        async with aiohttp.ClientSession() as http, asyncio.timeout(60):
            while True:
                assert process.returncode is None, f"{command[0]} ended with {process.returncode}"
                try:
                    async with http.get(url):
                        break
                except aiohttp.ClientError:
                    await asyncio.sleep(0.05)
        yield url
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@asynccontextmanager
async def dynamodb_local(folder: Path | None = None) -> AsyncIterator[str]:
    """Run DynamoDB Local."""
    port = free_port()
    async with serving(dynamodb_local_command(port, folder=folder), port) as url:
        yield url


@asynccontextmanager
async def moto() -> AsyncIterator[str]:
    """Run moto's server."""
    port = free_port()
    async with serving(moto_command(port), port) as url:
        yield url
