"""The memvid server as a process, over a memory that `chat-grpc ingest` made."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from chat_grpc.embedded import ingest, probes
from tests.embedded.processes import Process, environment, start

ROOT = Path(__file__).resolve().parents[2]

GUIDE = (
    """---
title: Guide
tags: [alpha, "topic:ships"]
---
Harbours are places where ships rest.

## How do I moor a ship?

Throw a rope to the bollard, then wait. """
    + "The tide decides when the ship may leave. " * 20
    + """

## How do I feed the gulls?

Gulls eat bread, fish and sandwiches.
"""
)

NOTES = "Lighthouses warn ships of rocks. Their lamps are lit at dusk."


@pytest.fixture(scope="session")
def small_memory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A memory of a few passages, from two files that lie in folders of their own."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "harbour").mkdir()
    (folder / "harbour" / "guide.md").write_text(GUIDE)
    (folder / "notes.txt").write_text(NOTES)
    (folder / "profile.yaml").write_text("name: small\ntitle: Small\nsuggested_questions:\n  - How do I moor a ship?\n")
    out = folder / "small.mv2"
    assert ingest.run([folder], out, None) == 0
    return out


@pytest.fixture(scope="session")
def docs_memory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The memory that `make run` builds, built by the real command."""
    out = tmp_path_factory.mktemp("docs") / "memory.mv2"
    command = [sys.executable, "-m", "chat_grpc", "ingest", "docs", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="session")
def memvid_process(small_memory: Path) -> Iterator[tuple[Process, str]]:
    """`chat-grpc memvid` over the small memory, and its address."""
    address = f"127.0.0.1:{probes.free_port()}"
    settings = {"CHAT_MEMVID_GRPC_URL": address, "CHAT_MEMVID_FILE": str(small_memory)}
    with start("memvid", **settings) as process:
        process.wait_for("serving")
        yield process, address


@pytest.fixture(scope="session")
def docs_process(docs_memory: Path) -> Iterator[str]:
    """`chat-grpc memvid` over the memory of docs/; its address."""
    address = f"127.0.0.1:{probes.free_port()}"
    with start("memvid", CHAT_MEMVID_GRPC_URL=address, CHAT_MEMVID_FILE=str(docs_memory)) as process:
        process.wait_for("serving")
        yield address


@pytest.fixture
def channel(memvid_process: tuple[Process, str]) -> Iterator[grpc.Channel]:
    """A channel to the server over the small memory."""
    with grpc.insecure_channel(memvid_process[1]) as opened:
        yield opened
