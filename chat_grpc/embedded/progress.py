"""A progress bar on a terminal; a line for each stage anywhere else."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

if TYPE_CHECKING:
    import rich.progress

T = TypeVar("T")


class Progress:
    """Shows on stderr how far the stages of a command are."""

    def __init__(self) -> None:
        self._bar: rich.progress.Progress | None = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Bar(*columns, console=Console(stderr=True))

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def steps(self, stage: str, items: Sequence[T], weigh: Callable[[T], int] = lambda _: 1) -> Iterator[T]:
        """Yield the items, moving the bar by the weight of each when it is done."""
        total = sum(map(weigh, items))
        if self._bar is None:
            print(f"{stage} {total}", file=sys.stderr)  # noqa: T201 (a command's own voice)
            yield from items
            return
        task = self._bar.add_task(stage, total=total)
        for item in items:
            yield item
            self._bar.advance(task, weigh(item))

    def meter(self, stage: str, total: int) -> Callable[[int], None]:
        """Return what moves a bar on by as much as it is given."""
        if self._bar is None:
            print(f"{stage} {total}", file=sys.stderr)  # noqa: T201 (a command's own voice)
            return lambda _: None
        bar, task = self._bar, self._bar.add_task(stage, total=total)
        return lambda by: bar.advance(task, by)
