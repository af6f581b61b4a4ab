"""The time between two pieces of an answer, noted where every nanosecond is paid by the thousand."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from functools import partial
from itertools import islice
from operator import sub

GAP_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds in seconds, each included; what is longer has a count of its own at the end."""


class TokenGaps:
    """The gaps between the pieces of one answer; ``Metrics.merge_gaps`` takes them all at its end.

    Attributes:
        note: to be called with the moment (time.monotonic()) at which a piece came. It is the array's own method: a
            token pays 8 bytes and no frame for it, and the counting is done at the end, for all of them at once.
    """

    __slots__ = ("_moments", "note")

    def __init__(self) -> None:
        self._moments = array("d")
        self.note = self._moments.append

    @property
    def sum(self) -> float:
        """The seconds of all gaps together."""
        return self._moments[-1] - self._moments[0] if self._moments else 0.0

    def counts(self) -> list[int]:
        """Return how many gaps are in each of the buckets."""
        gaps = sorted(map(sub, islice(self._moments, 1, None), self._moments))
        ends = [*map(partial(bisect_right, gaps), GAP_BOUNDS), len(gaps)]
        return list(map(sub, ends, (0, *ends)))
