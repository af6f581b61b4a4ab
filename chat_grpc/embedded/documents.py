"""From files to documents: Markdown, text and PDF."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chat_grpc.embedded import markdown, profile, yamls
from chat_grpc.embedded.errors import CommandError
from chat_grpc.embedded.passages import Document, Section

MARKDOWN = (".md", ".markdown")
TEXT = (".txt", ".text")
PDF = (".pdf",)
SUPPORTED = MARKDOWN + TEXT + PDF

_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_BLANK_LINES = re.compile(r"\n[ \t]*\n\s*")
_BROKEN_WORD = re.compile(r"(?<=[a-z])-\n(?=[a-z])")
_LINE_END = re.compile(r"(?<=\S)[ \t]*\n(?=[^\s\-*•])(?!\d+[.)] )")
_FRONT_MATTER = re.compile(r"---[ \t]*\n(.*?)(?:^---|^\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL | re.MULTILINE)


@dataclass(slots=True)
class Found:
    """The files below the paths given: those to read, by address, and how many were passed over."""

    files: dict[str, Path] = field(default_factory=dict)
    skipped: int = 0


def find(paths: Sequence[Path]) -> Found:
    """Find the files to read, folders through and through, in the order of their names.

    Raises:
        CommandError: a path does not exist, or is a file of another kind.
    """
    found = Found()
    seen: set[Path] = set()
    for path in paths:
        if path.is_dir():
            for file in _walk(path):
                if file.suffix.lower() in SUPPORTED:
                    _add(found, seen, file, f"{path.resolve().name}/{file.relative_to(path).as_posix()}")
                elif file.name != profile.FILE_NAME:
                    found.skipped += 1
        elif not path.exists():
            raise CommandError(f"there is no {path}; name files or folders that exist.")
        elif path.suffix.lower() not in SUPPORTED:
            raise CommandError(f"{path} can't be read; the kinds are {', '.join(SUPPORTED)}.")
        else:
            _add(found, seen, path, path.name)
    return found


def _add(found: Found, seen: set[Path], file: Path, address: str) -> None:
    if (real := file.resolve()) in seen:
        return
    seen.add(real)
    free, number = address, 2
    while free in found.files:  # two folders of the same name
        free, number = f"{address}~{number}", number + 1
    found.files[free] = file


def _walk(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise CommandError(f"{error.filename} can't be read; allow it, or name its files one by one.") from None

    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent, name) for name in sorted(files) if not name.startswith("."))


def read(path: Path, address: str) -> Document:
    """Read one file.

    Raises:
        CommandError: it can't be read, or is not what its name says.
    """
    if path.suffix.lower() in PDF:
        return _read_pdf(path, address)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError:
        raise CommandError(f"{path} can't be read; allow it, or leave it out.") from None
    except UnicodeDecodeError:
        raise CommandError(f"{path} is not text in UTF-8; convert it, or leave it out.") from None
    text = _UNPRINTABLE.sub("", text)
    if path.suffix.lower() in TEXT:
        return Document(address, path.stem, (), (Section((), _paragraphs(text)),))
    return _read_markdown(text, path, address)


def _read_markdown(text: str, path: Path, address: str) -> Document:
    head: dict[str, Any] = {}
    if (match := _FRONT_MATTER.match(text)) is not None:
        head = yamls.parse(match[1], path, first_line=2) or {}
        text = text[match.end() :]
    if not isinstance(head, dict):
        raise CommandError(f"{path}: the front matter between the lines --- must be of the form title: ...")
    title = head.get("title")
    if title is not None and not isinstance(title, str):
        raise CommandError(f"{path}: title in the front matter must be a text; put it in quotes.")
    title, sections = markdown.parse(text, title)
    return Document(address, title or path.stem, _tags(head.get("tags"), path), sections)


def _tags(tags: object, path: Path) -> tuple[str, ...]:
    if tags is None:
        return ()
    if isinstance(tags, str):
        tags = tags.split(",")
    if not isinstance(tags, list) or any(isinstance(tag, list | dict) for tag in tags):
        raise CommandError(f"{path}: tags in the front matter must be a list or comma-separated, like tags: [a, b].")
    return tuple(dict.fromkeys(text for tag in tags if (text := str(tag).strip())))


def _read_pdf(path: Path, address: str) -> Document:
    import pypdf

    # It warns of every small fault that it can read past.
    logging.getLogger("pypdf").setLevel(logging.ERROR)
    try:
        reader = pypdf.PdfReader(path)
        # Fonts with faulty tables give halves of characters, which are no text.
        pages = [page.extract_text().encode(errors="ignore").decode() for page in reader.pages]
        title = (reader.metadata.title if reader.metadata else None) or ""
    except Exception:  # noqa: BLE001 (a broken file makes pypdf fail in any way)
        raise CommandError(f"{path} is no PDF that can be read; it may be damaged, or need a password.") from None
    sections = tuple(
        Section((f"Page {number}",), blocks)
        for number, text in enumerate(pages, 1)
        if (blocks := _paragraphs(_UNPRINTABLE.sub("", text)))
    )
    return Document(address, title.strip() or path.stem, (), sections)


def _paragraphs(text: str) -> tuple[str, ...]:
    """Return the paragraphs, each on one line but for its list items; words broken at a line's end are whole again."""
    whole = _LINE_END.sub(" ", _BROKEN_WORD.sub("", text))
    return tuple(block.strip() for block in _BLANK_LINES.split(whole) if block.strip())
