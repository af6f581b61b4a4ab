"""`chat-grpc ingest`: files into one .mv2 file that memvid serves.

memvid-sdk 2.0.160 can lose some passages of a batch, or all of them, and still
return an id for each: its log is a ring of 64 KiB at first, and a batch that comes
when the ring is nearly full overwrites its own beginning. So each passage is
looked up once it was put, and what is not there is put again.
"""

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

SIZES = (BATCH, BATCH // 4, 1, 1)
"""How many passages are put at once at each try; fewer when some were lost, for one alone does not fill the log."""


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
            stored = _verify(unfinished, pieces, out)
    skipped = f", {found.skipped} of other kinds skipped" if found.skipped else ""
    print(f"{out}: {stored} passages from {len(found.files)} files{skipped}")  # noqa: T201 (the command's result)


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
                _put(memory, batch)
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


def _put(memory: Any, batch: list[passages.Piece]) -> None:
    """Put passages, and again those that were lost; what is lost each time is left for `_verify` to find."""
    for size in SIZES:
        for start in range(0, len(batch), size):
            memory.put_many([_request(piece) for piece in batch[start : start + size]])
        batch = _missing(memory, batch)
        if not batch:
            return


def _missing(memory: Any, pieces: Sequence[passages.Piece]) -> list[passages.Piece]:
    """Return the passages that a file does not hold; looking one up takes some microseconds."""
    not_found = sdk.load().FrameNotFoundError
    missing = []
    for piece in pieces:
        try:
            memory.frame(piece.uri)
        except not_found:
            missing.append(piece)
    return missing


def _verify(path: Path, pieces: Sequence[passages.Piece], out: Path) -> int:
    """Read the finished file as a server will, and return how many passages it holds.

    Raises:
        CommandError: these are not the ones that were put, each once.
    """
    memvid = sdk.load()
    try:
        with memvid.use("basic", str(path), read_only=True) as memory:
            stored: int = memory.stats()["frame_count"]
            lost = len(_missing(memory, pieces))
    except (memvid.MemvidError, OSError):
        raise CommandError(f"{out} was not written: what memvid wrote can't be read; its disk may fail.") from None
    if lost or stored != len(pieces):
        raise CommandError(
            f"{out} was not written: of {len(pieces)} passages memvid kept {len(pieces) - lost}, in {stored} places, "
            "though those that it lost were put again; spread the files over several memories."
        )
    return stored


def _request(piece: passages.Piece) -> dict[str, Any]:
    return {"title": piece.title, "label": "docs", "text": piece.text, "tags": list(piece.tags), "uri": piece.uri}
