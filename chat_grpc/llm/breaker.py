"""A circuit breaker: who keeps failing is left alone for a while, then asked by one request at a time.

Our own, since none at hand fits an answer that is streamed. pybreaker and
aiobreaker wrap a call, whose end is the verdict: here a provider that has begun
to answer may still fail, long after the call. purgatory and circuitbreaker let
every waiting request through at once when it is time to probe, and purgatory
takes 40 ms to import.
"""

from __future__ import annotations

from collections.abc import Callable

CLOSED = "closed"
OPEN = "open"
HALF_OPEN = "half_open"


class Breaker:
    """Counts consecutive failures, and opens at ``limit`` of them.

    Args:
        limit: how many in a row are too many.
        seconds: how long nobody is let through then.
        clock: seconds that only grow, such as the event loop's time.

    Attributes:
        count: the failures in a row.
        until: when a probe may begin, on the clock; None while closed.
        probing: whether one has.
    """

    __slots__ = ("_clock", "_seconds", "count", "limit", "probing", "until")

    def __init__(self, *, limit: int, seconds: float, clock: Callable[[], float]) -> None:
        self._seconds = seconds
        self._clock = clock
        self.limit = limit
        self.count = 0
        self.until: float | None = None
        self.probing = False

    @property
    def state(self) -> str:
        """Return closed, open or half_open: the time to probe has come."""
        if self.until is None:
            return CLOSED
        return OPEN if self.wait > 0 else HALF_OPEN

    @property
    def wait(self) -> float:
        """Return the seconds until a probe may begin; 0 if now."""
        return 0.0 if self.until is None else max(self.until - self._clock(), 0.0)

    def admit(self) -> Attempt | None:
        """Let a request through, or return None. Whoever is let through says what came of it."""
        if self.until is None:
            return Attempt(self, probe=False)
        if self.probing or self.wait > 0:
            return None
        self.probing = True
        return Attempt(self, probe=True)

    def open(self) -> None:
        """Let nobody through from now on, until it is time to probe."""
        self.until = self._clock() + self._seconds
        self.probing = False


class Attempt:
    """One request that was let through.

    What requests say that were let through before the breaker opened changes
    nothing while it is open: only the probe's word counts.
    """

    __slots__ = ("_breaker", "_probe")

    def __init__(self, breaker: Breaker, *, probe: bool) -> None:
        self._breaker = breaker
        self._probe = probe

    def answered(self) -> None:
        """It has begun to answer: a probe closes the breaker, which one more failure opens again."""
        if self._probe:
            breaker = self._breaker
            self._probe = breaker.probing = False
            breaker.until = None
            breaker.count = breaker.limit - 1

    def succeeded(self) -> None:
        """It answered to the end."""
        self.answered()
        if self._breaker.until is None:
            self._breaker.count = 0

    def failed(self) -> None:
        """It failed."""
        breaker = self._breaker
        if self._probe:
            self._probe = False
            breaker.open()
        elif breaker.until is None:
            breaker.count += 1
            if breaker.count >= breaker.limit:
                breaker.open()

    def left(self) -> None:
        """Nobody waits for it any more, and nothing is known: the next request may probe."""
        if self._probe:
            self._probe = self._breaker.probing = False
