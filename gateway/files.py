"""The files of the chat page and of the documentation's pages: as they are on the disk, and as browsers are given them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from google.api.httpbody_pb2 import HttpBody

from chat_grpc.rpc.interceptor import Context

CONTENT_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
HEADERS = (
    # Kept by browsers, but asked about each time: a new version shows at the next reload.
    ("cache-control", "no-cache"),
    ("x-content-type-options", "nosniff"),
    # A link in an answer does not tell its target where it was followed from.
    ("referrer-policy", "no-referrer"),
    ("cross-origin-resource-policy", "same-origin"),
)


@dataclass(frozen=True, slots=True)
class File:
    """One file; ``etag`` changes with its bytes, ``modified`` (nanoseconds) tells when to look at them again."""

    data: bytes
    content_type: str
    etag: str
    modified: int


class Files:
    """One folder, without those below it, kept in memory.

    A file that changes is read again, so that a person who works on the page
    only has to reload it. A name is looked up among those that the folder
    holds, and never becomes a path.
    """

    def __init__(self, folder: Path) -> None:
        self._paths = {path.name: path for path in folder.iterdir() if path.suffix in CONTENT_TYPES}
        self._files: dict[str, File] = {}

    def get(self, name: str) -> File | None:
        """Return a file as it is now, or None if there is none of this name."""
        path = self._paths.get(name)
        if path is None:
            return None
        known = self._files.get(name)
        try:
            modified = path.stat().st_mtime_ns
            if known is None or known.modified != modified:
                data = path.read_bytes()
                etag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
                known = self._files[name] = File(data, CONTENT_TYPES[path.suffix], etag, modified)
        except OSError:  # taken away since the start, perhaps for the moment that an editor needs to replace it
            return known
        return known


async def answer(file: File, context: Context, headers: tuple[tuple[str, str], ...] = ()) -> HttpBody:
    """Answer a file, or 304 without it to a client that has it. Envoy makes x-http-status the status."""
    # Weak, for Envoy may compress the bytes on their way, and drops a tag that promises the very same bytes.
    sent = (("etag", f"W/{file.etag}"), *HEADERS, *headers)
    asked = str(dict(context.invocation_metadata() or ()).get("if-none-match", ""))
    if file.etag in (tag.strip().removeprefix("W/") for tag in asked.split(",")):
        await context.send_initial_metadata((*sent, ("x-http-status", "304")))
        return HttpBody(content_type=file.content_type)
    await context.send_initial_metadata(sent)
    return HttpBody(content_type=file.content_type, data=file.data)
