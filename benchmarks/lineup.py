"""Who is compared, and how each is started: all with the same upstream, each with a client process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import processes

HERE = Path(__file__).resolve().parent
CONTESTANTS = HERE / "contestants"
BENCH_PYTHON = HERE.parent / ".build" / "bench-venv" / "bin" / "python"
"""The interpreter of requirements/bench.txt: LiteLLM asks for other versions than this project does."""

CHAT_COMPLETIONS = "/v1/chat/completions"
UNLIMITED = {
    "CHAT_RATE_LIMIT": "off",
    "CHAT_ADDRESS_RATE_LIMIT": "off",
    "CHAT_REST_RATE_LIMIT": "off",
    "CHAT_MAX_STREAMS_PER_USER": "10000",
    "CHAT_MAX_STREAMS": "100000",
}
"""One client asks for all of a load, which no caller may do otherwise."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """One that is measured: the processes that serve, and the client that asks it."""

    name: str
    label: str
    pids: tuple[int, ...]
    client: Client
    also: tuple[int, ...] = ()
    """What stands in front of it (Envoy), whose time is told apart."""


class Client:
    """A client process (client.py)."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pid = process.pid

    def load(self, message: str, **load: Any) -> dict[str, Any]:
        """Drive a load and return what was seen."""
        self.begin(message, **load)
        return self.answer()

    def begin(self, message: str, **load: Any) -> None:
        """Begin a load."""
        self.line(json.dumps({"message": message, **load}))

    def line(self, text: str = "") -> None:
        """Send one line; an empty one ends a load that holds."""
        assert self._process.stdin is not None  # noqa: S101 (it is a pipe; this tells mypy)
        self._process.stdin.write(text + "\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """Wait for one answer."""
        assert self._process.stdout is not None  # noqa: S101 (it is a pipe; this tells mypy)
        line = self._process.stdout.readline()
        if not line:
            sys.exit("the client ended; what it wrote above says why")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def client(*arguments: str) -> Iterator[Client]:
    """Run a client process."""
    # The command is this interpreter with a script of this project.
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, str(HERE / "client.py"), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Client(process)
    finally:
        process.terminate()
        process.wait(10)


def settings_for(url: str) -> dict[str, str]:
    """Return the settings of this server over an upstream: its defaults, logs and telemetry too, and no limits."""
    return {
        "CHAT_LLM_PROVIDER": "local",
        "CHAT_LLM_BASE_URL": url,
        "CHAT_LLM_MODEL": "bench",
        "CHAT_MEMVID_GRPC_URL": "127.0.0.1:9",
        "CHAT_LOG_LEVEL": "INFO",
        **UNLIMITED,
    }


@contextmanager
def server(url: str, **environ: str) -> Iterator[tuple[int, str]]:
    """Run this server; yield its process and its address."""
    environ = {**settings_for(url), **environ}
    with (
        tempfile.TemporaryDirectory() as folder,
        processes.server(folder, subprocess.DEVNULL, **environ) as (process, address),
    ):
        processes.wait_until_serving(address)
        yield process.pid, address


@contextmanager
def this_server(url: str, **environ: str) -> Iterator[Contestant]:
    """This server over gRPC."""
    with server(url, **environ) as (pid, address), client("grpc", address) as asking:
        yield Contestant("grpc", "chat-grpc, gRPC", (pid,), asking)


@contextmanager
def this_server_through_envoy(url: str) -> Iterator[Contestant]:
    """This server over server-sent events, through Envoy."""
    port = processes.free_port()
    with server(url) as (pid, address), tempfile.TemporaryDirectory() as folder:
        environ = {"CHAT_GRPC_PORT": address.partition(":")[2], "CHAT_HTTP_PORT": str(port)}
        with (
            processes.running(["-m", "chat_grpc", "envoy"], folder, output=subprocess.DEVNULL, **environ) as envoy,
            client("sse", f"127.0.0.1:{port}", "/api/v1/chat") as asking,
        ):
            processes.wait_until_listening(port)
            yield Contestant("sse", "chat-grpc, SSE through Envoy", (pid,), asking, also=(envoy.pid,))


@contextmanager
def bare(*arguments: str) -> Iterator[Contestant]:
    """A bare grpc.aio relay of the upstream; with --replay FILE, a bare grpc.aio stream of the file's messages."""
    port = processes.free_port()
    with (
        processes.running([str(CONTESTANTS / "bare.py"), str(port), *arguments], str(HERE)) as process,
        client("grpc", f"127.0.0.1:{port}") as asking,
    ):
        processes.wait_until_listening(port)
        yield Contestant("bare", "bare grpc.aio relay", (process.pid,), asking)


@contextmanager
def fastapi(url: str, python: str) -> Iterator[Contestant]:
    """A relay of FastAPI and httpx."""
    port = processes.free_port()
    command = [str(CONTESTANTS / "fastapi_relay.py"), str(port), url]
    with (
        processes.running(command, str(HERE), python=python) as process,
        client("sse", f"127.0.0.1:{port}", CHAT_COMPLETIONS) as asking,
    ):
        processes.wait_until_listening(port)
        yield Contestant("fastapi", "FastAPI + httpx relay", (process.pid,), asking)


@contextmanager
def litellm(url: str, python: str) -> Iterator[Contestant]:
    """The LiteLLM proxy with one worker."""
    port = processes.free_port()
    command = [str(Path(python).with_name("litellm")), "--config", str(CONTESTANTS / "litellm.yaml")]
    environ = {
        "BENCH_UPSTREAM": url,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_LOG": "ERROR",
        "LITELLM_MODE": "PRODUCTION",
        "LITELLM_TELEMETRY": "False",
        "LITELLM_DISABLE_NO_REDIS_WARNING": "true",
    }
    with (
        tempfile.TemporaryDirectory() as folder,
        processes.running(
            [*command, "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"],
            folder,
            python=python,
            output=subprocess.DEVNULL,
            **environ,
        ) as process,
        client("sse", f"127.0.0.1:{port}", CHAT_COMPLETIONS) as asking,
    ):
        processes.wait_until_listening(port, process, seconds=120)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/liveliness", timeout=60):
            yield Contestant("litellm", "LiteLLM proxy", (process.pid,), asking)


@contextmanager
def direct(url: str, pid: int) -> Iterator[Contestant]:
    """The upstream itself."""
    with client("sse", url.removeprefix("http://").removesuffix("/v1"), CHAT_COMPLETIONS) as asking:
        yield Contestant("direct", "the upstream directly", (pid,), asking)


@contextmanager
def everyone(url: str, upstream: int, python: str, *, smoke: bool) -> Iterator[dict[str, Contestant]]:
    """Start all contestants, or those that the CPU rows compare; yield them by name."""
    with ExitStack() as stack:
        started = [this_server(url), bare(url), litellm(url, python)]
        if not smoke:
            started += [this_server_through_envoy(url), fastapi(url, python), direct(url, upstream)]
        contestants = [stack.enter_context(one) for one in started]
        yield {contestant.name: contestant for contestant in contestants}


def bench_python() -> str:
    """Return the interpreter of the contestants from PyPI, or exit with what to do."""
    python = os.environ.get("BENCH_PYTHON", str(BENCH_PYTHON))
    if not Path(python).exists():
        sys.exit(f"{python} is missing; `make bench` and `make bench-smoke` install it from requirements/bench.txt")
    return python
