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
def running(command: list[str], folder: str, **environ: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command of this interpreter in a folder, with no CHAT_ settings but those given; end it after."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("CHAT_")}
    # The commands are this interpreter with scripts and modules of this project.
    process = subprocess.Popen([sys.executable, *command], cwd=folder, env=clean | environ)  # noqa: S603
    try:
        yield process
    finally:
        process.terminate()
        process.wait(10)


@contextmanager
def server(folder: str, **environ: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Run `chat-grpc serve`; yield it, not yet waited for, and its address."""
    port = free_port()
    environ = {"CHAT_GRPC_PORT": str(port), "CHAT_LOG_LEVEL": "ERROR", **environ}
    with running(["-m", "chat_grpc", "serve"], folder, **environ) as process:
        yield process, f"127.0.0.1:{port}"


@contextmanager
def upstream() -> Iterator[str]:
    """Run upstream.py; yield its base URL once it listens."""
    port = free_port()
    with running([str(HERE / "upstream.py"), str(port)], str(HERE)):
        wait_until_listening(port)
        yield f"http://127.0.0.1:{port}/v1"


def wait_until_listening(port: int) -> None:
    """Return as soon as a port of this machine takes connections."""
    for _ in range(1000):
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
