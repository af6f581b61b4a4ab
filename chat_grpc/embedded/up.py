"""``chat-grpc up``: memvid, the server and Envoy (and a local model) from one command."""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from chat_grpc.auth import exposure
from chat_grpc.embedded import probes
from chat_grpc.embedded.errors import CommandError, report
from chat_grpc.embedded.supervisor import Program, Supervisor
from chat_grpc.settings import Settings

_PACKAGE = Path(__file__).resolve().parent.parent
FOLDERS = (_PACKAGE.parent, _PACKAGE / "_data")
"""Where docs/ may be: a checkout, else the copy that an installation carries."""
PROCFILE = _PACKAGE.parent / "Procfile"
PROCESSES = {"memvid": "chat-grpc memvid", "server": "chat-grpc serve", "envoy": "chat-grpc envoy"}
"""What the Procfile of a checkout says; an installation carries none."""
PROFILE = "profile.yaml"
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
RATE_LIMITS = (
    ("CHAT_RATE_LIMIT",),
    ("CHAT_ADDRESS_RATE_LIMIT",),
    ("CHAT_REST_RATE_LIMIT", "RATE_LIMIT_PER_MINUTE"),
)
"""The settings of rates, each with its aliases."""
HERE = frozenset({"localhost", "127.0.0.1", "::1", "0.0.0.0"})  # noqa: S104 (compared, not bound)


def run(settings: Settings, *, llm: str | None) -> int:
    """Start everything, keep it running until a signal, stop it; return the exit code.

    Args:
        settings: those of every process.
        llm: "local" starts a local model too and has it answer; None leaves the model to the settings.
    """
    # grpc's core would write a line for every try to connect.
    environment = dict(os.environ)
    os.environ["GRPC_VERBOSITY"] = "NONE"
    environment.setdefault("CHAT_LOG_FORMAT", "text")
    environment["PYTHONUNBUFFERED"] = "1"
    if {settings.grpc_host, settings.http_host} <= LOOPBACK:
        # Whoever can ask is on this machine, trying things out: a limit is only set if asked for.
        for name, *aliases in RATE_LIMITS:
            if not any(environment.get(known, "").strip() for known in (name, *aliases)):
                environment[name] = "off"
    try:
        for setting in ("grpc_host", "http_host"):
            if why := exposure.refusal(settings, setting=setting):
                raise CommandError(f"{why}.")  # noqa: TRY301 (it is told like every other fault)
        programs = list(_programs(settings, llm))
        for program in programs:
            _check_port(program)
        if any(program.name == "memvid" for program in programs):
            _build_memory(Path(settings.memvid_file))
    except CommandError as error:
        return report("up", error)
    supervisor = Supervisor(programs, environment)
    return asyncio.run(supervisor.run(lambda: print(_what_next(settings), flush=True)))


def _programs(settings: Settings, llm: str | None) -> Iterator[Program]:
    """Yield what the Procfile names, and the local model if it is asked for.

    Raises:
        CommandError: a file is missing, or the Procfile names a process that is not known here.
    """
    from honcho.environ import parse_procfile

    model: dict[str, str] = {}
    if llm == "local":
        port = probes.free_port()
        yield _local_model(port)
        # An empty variable counts as unset: the model named for another provider is not this one's.
        model = {
            "CHAT_LLM_PROVIDER": "local",
            "CHAT_LLM_BASE_URL": f"http://127.0.0.1:{port}/v1",
            "CHAT_LLM_MODEL": "",
            "LLM_MODEL": "",
        }
        if not os.environ.get("CHAT_LLM_MAX_TOKENS"):
            # So small a model does not know when to stop.
            model["CHAT_LLM_MAX_TOKENS"] = "256"
    memvid_host, memvid_port = _split(settings.memvid_grpc_url)
    grpc_host, http_host = probes.reachable(settings.grpc_host), probes.reachable(settings.http_host)
    processes = parse_procfile(PROCFILE.read_text(encoding="utf-8")).processes if PROCFILE.exists() else PROCESSES
    for name, line in processes.items():
        command = _command(line)
        match name:
            case "memvid":
                if memvid_host not in HERE:
                    print(
                        f"memvid is not started: CHAT_MEMVID_GRPC_URL={settings.memvid_grpc_url} is another machine's"
                    )
                    continue
                serves = probes.grpc_health(probes.reachable(memvid_host), memvid_port)
                # The server would not find it at its first try, and answer without it until the next one.
                yield Program(
                    name=name,
                    command=command,
                    host=memvid_host,
                    port=memvid_port,
                    serves=serves,
                    needed_first=True,
                )
            case "server":
                yield Program(
                    name=name,
                    command=command,
                    host=settings.grpc_host,
                    port=settings.grpc_port,
                    # Envoy's own probe, below, asks the server for more.
                    serves=(probes.listening if settings.tls_cert_file else probes.grpc_health)(
                        grpc_host, settings.grpc_port
                    ),
                    environment=model,
                    # First of all, and in its own time: what it is answering still needs the others.
                    stop_order=0,
                    stop_seconds=settings.drain_seconds + 5,
                )
            case "envoy":
                # An unhealthy service is no reason to stop Envoy: also what it says of that came through.
                serves = probes.http_health(http_host, settings.http_port, "/api/v1/health", says=b"memvid_connected")
                yield Program(
                    name=name, command=command, host=settings.http_host, port=settings.http_port, serves=serves
                )
            case _:
                raise CommandError(f"the Procfile names {name}, which `up` does not know; use `honcho start` for it.")


def _local_model(port: int) -> Program:
    from chat_grpc.embedded import llama

    if llama.packaged_model() is None:
        raise CommandError("the local model is not installed; install it with `make local-model`.")
    return Program(
        name="llm",
        command=_command(f"chat-grpc llama --host 127.0.0.1 --port {port}"),
        host="127.0.0.1",
        port=port,
        serves=probes.http_health("127.0.0.1", port, "/health"),
        needed_first=True,
    )


def _command(line: str) -> list[str]:
    """Return a line of the Procfile as a command; `chat-grpc` is the one of this interpreter, on the PATH or not."""
    words = shlex.split(line)
    return [sys.executable, "-m", "chat_grpc", *words[1:]] if words[0] == "chat-grpc" else words


def _check_port(program: Program) -> None:
    setting = {"memvid": "CHAT_MEMVID_GRPC_URL", "server": "CHAT_GRPC_PORT", "envoy": "CHAT_HTTP_PORT"}
    if not probes.is_free(program.host, program.port):
        raise CommandError(
            f"port {program.port} is taken, and {program.name} needs it; end the process that uses it, "
            f"or choose another with {setting.get(program.name, '--port')}."
        )


def _build_memory(file: Path) -> None:
    """Make the first memory, of the documentation of this project, unless there is one.

    Raises:
        CommandError: that failed; what went wrong has been said.
    """
    if file.exists():
        return
    docs = _find("docs")
    print(f"making {file} from {docs} (the first time only)", flush=True)
    # A process of its own: memvid's core would stay in this one's memory for good.
    done = subprocess.run(  # noqa: S603 (our own program)
        [*_command("chat-grpc ingest"), str(docs), "--profile", str(docs / PROFILE), "--out", str(file)], check=False
    )
    if done.returncode:
        raise CommandError(f"{file} could not be made.")


def _find(name: str) -> Path:
    for folder in FOLDERS:
        if (folder / name).exists():
            return folder / name
    raise CommandError(f"{name} is neither in {FOLDERS[0]} nor in {FOLDERS[1]}; reinstall chat-grpc.")


def _split(target: str) -> tuple[str, int]:
    host, _, port = target.rpartition(":")
    return host.strip("[]"), int(port)


def _what_next(settings: Settings) -> str:
    """Return what to try, for people who see this for the first time; commands can be copied as they stand."""
    http = f"localhost:{settings.http_port}"
    grpc = f"localhost:{settings.grpc_port}"
    address = "" if settings.grpc_port == Settings().grpc_port else f" --address {grpc}"
    return f"""
chat-grpc is running. Try, in another terminal:

  curl -N {http}/api/v1/chat -H 'content-type: application/json' -d '{{"message":"How do I keep messages in DynamoDB?"}}'
  {_tool("grpcurl")} -plaintext -d '{{"message":"How do I run a local model?"}}' {grpc} chat.v1.ChatService/Chat
  {_tool("chat-grpc")} chat{address}

or open http://{http}/api/v1/health in a browser. Ctrl-C stops everything.
"""


def _tool(name: str) -> str:
    """Return how to call a tool from a shell: by name if it is on the PATH, else where this interpreter keeps it."""
    beside = Path(sys.executable).parent / name
    if shutil.which(name) or not beside.exists():
        return name
    return os.path.relpath(beside)
