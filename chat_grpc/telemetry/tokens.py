"""The time between two pieces of an answer, counted where every nanosecond is paid by the thousand."""

from __future__ import annotations

from bisect import bisect_left

GAP_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds in seconds, each included; what is longer has a count of its own at the end."""


class TokenGaps:
    """The gaps of one answer; ``Metrics.merge_gaps`` takes them all at its end.

    ``add`` costs 0.2 us: no lock, no label, nothing shared.
    """

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * (len(GAP_BOUNDS) + 1)
        self.sum = 0.0

    def add(self, seconds: float) -> None:
        """Count one gap."""
        self.counts[bisect_left(GAP_BOUNDS, seconds)] += 1
        self.sum += seconds
