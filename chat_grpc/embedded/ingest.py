"""`chat-grpc ingest`: files into one .mv2 file that memvid serves."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from chat_grpc.embedded import documents, passages, profile, sdk
from chat_grpc.embedded.errors import CommandError, report
from chat_grpc.embedded.progress import Progress

BATCH = 16
"""Passages written at once: some half a second of work, so that the bar moves."""


def run(paths: Sequence[Path], out: Path, profile_path: Path | None) -> int:
    """Write the passages of all files to ``out``, and say on stdout what it holds.

    The file appears whole or not at all: a server that has the old one open
    keeps it, and starts with the new one the next time.

    Returns:
        The exit code: 0, or 1 after one sentence on stderr.
    """
    try:
        _ingest(paths, out, profile_path)
    except CommandError as error:
        return report("ingest", error)
    return 0


def _ingest(paths: Sequence[Path], out: Path, profile_path: Path | None) -> None:
    found = documents.find(paths)
    profile_path = profile_path or _profile_beside(paths)
    card = profile.read(profile_path) if profile_path is not None else None
    with Progress() as progress:
        read = progress.steps("reading", list(found.files.items()))
        pieces = [piece for address, path in read for piece in passages.split(documents.read(path, address))]
        if not pieces:
            raise CommandError(
                f"there is nothing to ingest in {', '.join(map(str, paths))}; "
                f"the kinds of file that are read are {', '.join(documents.SUPPORTED)}."
            )
        with _replacing(out) as unfinished:
            batches = [pieces[start : start + BATCH] for start in range(0, len(pieces), BATCH)]
            _write(unfinished, progress.steps("writing", batches, weigh=len), card, out)
    skipped = f", {found.skipped} of other kinds skipped" if found.skipped else ""
    print(f"{out}: {len(pieces)} passages from {len(found.files)} files{skipped}")  # noqa: T201 (the command's result)


def _profile_beside(paths: Sequence[Path]) -> Path | None:
    beside = (path / profile.FILE_NAME for path in paths if path.is_dir())
    return next((path for path in beside if path.is_file()), None)


@contextmanager
def _replacing(out: Path) -> Iterator[Path]:
    """Give a path beside ``out``; what is written there takes its place in the end, if all went well."""
    if out.suffix != ".mv2" or out.is_dir():
        raise CommandError(f"--out must name a file that ends in .mv2, not {out}.")
    unfinished = out.with_name(f".{out.stem}.{os.getpid()}.unfinished.mv2")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        unfinished.touch()
        unfinished.unlink()
    except OSError:
        raise CommandError(f"the folder {out.parent} can't be written to; allow it, or name another --out.") from None
    try:
        yield unfinished
        unfinished.replace(out)
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


def _write(path: Path, batches: Iterator[list[passages.Piece]], card: dict[str, Any] | None, out: Path) -> None:
    memvid = sdk.load()
    try:
        with memvid.create(str(path)) as memory:
            for batch in batches:
                memory.put_many([_request(piece) for piece in batch])
            if card is not None:
                value = json.dumps(card, ensure_ascii=False)
                memory.add_memory_cards([{"entity": profile.ENTITY, "slot": profile.SLOT, "value": value}])
                memory.commit()
    except memvid.CapacityExceededError:
        raise CommandError(
            f"{out} was not written: memvid's free tier holds 50 MiB a file, and this is more; "
            "ingest fewer files, or spread them over several."
        ) from None
    except (memvid.MemvidError, OSError):
        raise CommandError(f"{out} was not written: its disk may be full, or fail; free some space.") from None


def _request(piece: passages.Piece) -> dict[str, Any]:
    return {"title": piece.title, "label": "docs", "text": piece.text, "tags": list(piece.tags), "uri": piece.uri}
