"""Markdown on a terminal while it is being written.

Whole blocks are rendered once and stay; only the block that is still being
written is drawn again and again, so nothing above it flickers, however long
the answer gets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.live import Live
from rich.markdown import Markdown

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from rich.console import Console


class MarkdownStream:
    """Renders the pieces of a Markdown text; a context manager, so that the terminal is always left in order."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._tail = ""
        self._live = Live(console=console, refresh_per_second=12, transient=True)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)
        if self._tail.strip():
            self._console.print(Markdown(self._tail))
        self._tail = ""

    def add(self, text: str) -> None:
        """Draw the next piece."""
        blocks, self._tail = split(self._tail + text)
        if blocks:
            # Also ends the block's last line, so the tail is drawn below it.
            self._console.print(Markdown(blocks))
            self._console.print()
        if self._console.is_terminal:
            self._live.update(Markdown(self._tail))


def split(text: str) -> tuple[str, str]:
    """Split Markdown into the blocks that are complete and the one that may go on.

    A block is complete at an empty line, unless that line is inside a fence.
    """
    fence = ""
    end = position = 0
    for line in text.splitlines(keepends=True):
        position += len(line)
        stripped = line.strip()
        if fence:
            if stripped.startswith(fence) and not stripped.strip(fence[0]):
                fence = ""
        elif stripped.startswith(("```", "~~~")):
            fence = stripped[: len(stripped) - len(stripped.lstrip(stripped[0]))]
        elif not stripped and line.endswith("\n"):
            end = position
    return text[:end], text[end:]
