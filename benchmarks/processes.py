"""Starting what is measured, each as a process of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

HERE = Path(__file__).parent
FAST_RECONNECT = (
    ("grpc.initial_reconnect_backoff_ms", 5),
    ("grpc.min_reconnect_backoff_ms", 5),
    ("grpc.max_reconnect_backoff_ms", 10),
)


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(
    command: list[str],
    folder: str,
    *,
    python: str = sys.executable,
    output: IO[bytes] | int | None = None,
    **environ: str,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command of an interpreter in a folder, with no CHAT_ settings but those given; end it after.

    Args:
        command: what follows the interpreter.
        folder: the folder to run in.
        python: the interpreter; this one unless named.
        output: where stdout and stderr go; unless named, where this process writes.
        environ: variables beside those of this process.
    """
    clean = {name: value for name, value in os.environ.items() if not name.startswith("CHAT_")}
    # The commands are an interpreter with scripts and modules of this project, or the contestants it installs.
    process = subprocess.Popen(  # noqa: S603
        [python, *command], cwd=folder, env=clean | environ, stdout=output, stderr=output
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(10)


@contextmanager
def server(
    folder: str, output: IO[bytes] | int | None = None, **environ: str
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Run `chat-grpc serve`; yield it, not yet waited for, and its address."""
    port = free_port()
    environ = {"CHAT_GRPC_PORT": str(port), "CHAT_LOG_LEVEL": "ERROR", **environ}
    with running(["-m", "chat_grpc", "serve"], folder, output=output, **environ) as process:
        yield process, f"127.0.0.1:{port}"


@contextmanager
def upstream() -> Iterator[str]:
    """Run upstream.py; yield its base URL once it listens."""
    with upstream_process() as (_, url):
        yield url


@contextmanager
def upstream_process() -> Iterator[tuple[int, str]]:
    """Run upstream.py; yield its process and its base URL once it listens."""
    port = free_port()
    with running([str(HERE / "upstream.py"), str(port)], str(HERE)) as process:
        wait_until_listening(port)
        yield process.pid, f"http://127.0.0.1:{port}/v1"


def wait_until_listening(port: int, process: subprocess.Popen[bytes] | None = None, *, seconds: int = 10) -> None:
    """Return as soon as a port of this machine takes connections; exit if the process that should listen ends."""
    for _ in range(seconds * 100):
        if process is not None and process.poll() is not None:
            sys.exit(f"{process.args!r} ended with exit code {process.returncode} before it listened")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.01)
    sys.exit(f"nothing listens on port {port}")


def wait_until_serving(address: str) -> None:
    """Return as soon as grpc.health.v1 says SERVING."""
    with grpc.insecure_channel(address, FAST_RECONNECT) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(), timeout=30, wait_for_ready=True
        )
        if answer.status != health_pb2.HealthCheckResponse.SERVING:
            sys.exit(f"the server at {address} answers {answer.status}")
