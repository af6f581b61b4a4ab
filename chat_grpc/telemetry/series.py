"""Numbers that are counted up and read as families of time series.

prometheus_client's own take 40 to 60 ms to import and a lock for each count.
Everything here is counted in the thread of the event loop, so plain numbers
do; prometheus_client writes them out when they are asked for (exposition.py).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from operator import add


class Kind(StrEnum):
    """What a family's values are. The values are Prometheus's names."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Spread:
    """A histogram at one moment: how many values lie in each bucket, the last one unbounded, and their sum."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float


@dataclass(frozen=True, slots=True)
class Family:
    """A metric with all its series at one moment; ``series`` is by the values of ``labels``."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...]
    series: tuple[tuple[tuple[str, ...], float | Spread], ...]


class Counter:
    """A number for each combination of labels that only grows.

    Args:
        name: the metric's name, ending in _total.
        help: what is counted.
        labels: the names of the labels.
        known: combinations that are shown from the start, at 0, so that their first count is seen as a change.
    """

    __slots__ = ("_values", "help", "labels", "name")

    def __init__(
        self,
        name: str,
        help: str,  # noqa: A002 (Prometheus's word)
        labels: tuple[str, ...] = (),
        known: Iterable[tuple[str, ...]] = (),
    ) -> None:
        self.name = name
        self.help = help
        self.labels = labels
        self._values: dict[tuple[str, ...], float] = dict.fromkeys(known if labels else [()], 0)

    def add(self, *labels: str, by: float = 1) -> None:
        """Count one, or ``by``."""
        self._values[labels] = self._values.get(labels, 0) + by

    def family(self) -> Family:
        """Return the values as they are now."""
        return Family(self.name, Kind.COUNTER, self.help, self.labels, tuple(self._values.items()))


class Histogram:
    """The spread of a measured quantity for each combination of labels.

    Args:
        name: the metric's name, ending in its unit.
        help: what is measured.
        bounds: the upper bounds of the buckets, each included.
        labels: the names of the labels.
        known: combinations that are shown from the start.
    """

    __slots__ = ("_cells", "bounds", "help", "labels", "name")

    def __init__(
        self,
        name: str,
        help: str,  # noqa: A002 (Prometheus's word)
        bounds: tuple[float, ...],
        labels: tuple[str, ...] = (),
        known: Iterable[tuple[str, ...]] = (),
    ) -> None:
        self.name = name
        self.help = help
        self.bounds = bounds
        self.labels = labels
        self._cells = {values: _Cell(len(bounds)) for values in (known if labels else [()])}

    def observe(self, value: float, *labels: str) -> None:
        """Count one value."""
        cell = self._cells.get(labels) or self._cell(labels)
        cell.counts[bisect_left(self.bounds, value)] += 1
        cell.sum += value

    def merge(self, counts: Sequence[int], total: float, *labels: str) -> None:
        """Count what was counted elsewhere, in buckets of the same bounds."""
        cell = self._cell(labels)
        cell.counts = list(map(add, cell.counts, counts))
        cell.sum += total

    def family(self) -> Family:
        """Return the values as they are now."""
        series = tuple(
            (labels, Spread(self.bounds, tuple(cell.counts), cell.sum)) for labels, cell in self._cells.items()
        )
        return Family(self.name, Kind.HISTOGRAM, self.help, self.labels, series)

    def _cell(self, labels: tuple[str, ...]) -> _Cell:
        cell = self._cells.get(labels)
        if cell is None:
            cell = self._cells[labels] = _Cell(len(self.bounds))
        return cell


class _Cell:
    __slots__ = ("counts", "sum")

    def __init__(self, bounds: int) -> None:
        self.counts = [0] * (bounds + 1)
        self.sum = 0.0
