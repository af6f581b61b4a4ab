"""Write all generated code: chat_grpc/_gen, chat_grpc/client/_gen, Envoy's descriptors, the OpenAPI document.

``python scripts/generate.py`` writes; ``--check`` writes and then fails if git
sees a difference; ``--imports-only`` only lays out the google/ protos that
buf.yaml refers to (enough for ``buf lint``).
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IMPORTS = ROOT / ".build" / "googleapis"
DESCRIPTORS = ROOT / "envoy" / "descriptors.binpb"
WITH_COMMENTS = ROOT / ".build" / "gateway.binpb"
OPENAPI = ROOT / "gateway" / "openapi.json"
GENERATED = ("chat_grpc/_gen", "chat_grpc/client/_gen", "envoy/descriptors.binpb", "gateway/openapi.json")


def main() -> None:
    """Run the steps that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fail if the committed code differs")
    parser.add_argument("--imports-only", action="store_true", help="only lay out google/ for buf")
    options = parser.parse_args()
    lay_out_imports()
    if options.imports_only:
        return
    buf("generate")
    DESCRIPTORS.parent.mkdir(exist_ok=True)
    # error_details is imported by no proto of ours, but Envoy needs it to
    # write the details of an error as JSON.
    rpc_details = IMPORTS.relative_to(ROOT) / "google" / "rpc" / "error_details.proto"
    packages = sorted(path.relative_to(ROOT) for path in (ROOT / "protos").iterdir())
    paths = [f"--path={path}" for path in (*packages, rpc_details)]
    buf("build", ".", *paths, "--as-file-descriptor-set", "--exclude-source-info", f"--output={DESCRIPTORS}")
    write_openapi()
    if options.check:
        status = run("git", "status", "--porcelain", "--untracked-files=all", "--", *GENERATED)
        if status:
            sys.exit(f"generated code differs from what is committed; run `make generate` and commit:\n{status}")


def lay_out_imports() -> None:
    """Copy google/{api,rpc}/*.proto of googleapis-common-protos to .build/googleapis."""
    shutil.rmtree(IMPORTS, ignore_errors=True)
    for package in ("google.api", "google.rpc"):
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            sys.exit(f"{package} is not installed; run `make setup`")
        target = IMPORTS / package.replace(".", "/")
        target.mkdir(parents=True)
        for proto in Path(spec.submodule_search_locations[0]).glob("*.proto"):
            shutil.copy(proto, target)


def write_openapi() -> None:
    """Write the OpenAPI document of gateway.v1."""
    buf("build", ".", "--path=protos/gateway", "--as-file-descriptor-set", f"--output={WITH_COMMENTS}")
    # What these import may itself import generated code, so not before it is there.
    from openapi import render

    from chat_grpc import __version__
    from chat_grpc.rpc.auth import is_open
    from gateway.openai_shapes import schemas

    OPENAPI.write_text(render(WITH_COMMENTS.read_bytes(), __version__, schemas(), is_open), encoding="utf-8")


def buf(*args: str) -> None:
    """Run buf with this interpreter's scripts first on the PATH, where its plugins are."""
    run("buf", *args)


def run(*command: str) -> str:
    """Run a command in the root and return what it printed; exit if it fails."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # Every command is written in this file; nothing passes through a shell.
    done = subprocess.run(  # noqa: S603
        command, cwd=ROOT, env=os.environ | {"PATH": path}, check=False, stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


if __name__ == "__main__":
    main()
