"""Driving loads in rounds, each load and each contestant in turn, so that whatever else happens hits all alike."""

from __future__ import annotations

import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import cpu
from lineup import Contestant

MERGED = 0.97
"""Messages per token of a paced load below which tokens had to wait for each other: no longer what the row is about."""
DISTURBED = 0.15
"""Processors' worth of other work beside a measurement beyond which it is repeated."""
ATTEMPTS = 2


@dataclass(frozen=True, slots=True)
class Load:
    """What each contestant is asked in a round; see client.py."""

    name: str
    message: str
    tokens: int
    streams: int = 1
    requests: int = 1
    ramp: float = 0.0
    same: bool = False
    light: bool = False

    def arguments(self) -> dict[str, Any]:
        """Return what the client is told beside the message."""
        told = ("streams", "requests", "ramp", "same", "light")
        return {name: getattr(self, name) for name in told}


@dataclass(frozen=True, slots=True)
class Plan:
    """A load, and who is asked, ``turns`` times a round; a sample is ``repeat`` loads in a row, LiteLLM's a single one."""

    load: Load
    contestants: Sequence[Contestant]
    repeat: int = 1
    turns: int = 1


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement: CPU seconds, and what the client saw."""

    cpu: float
    also: float
    seen: dict[str, Any]
    foreign: float

    def per_token(self) -> float:
        """Return the CPU time of the serving process per token, in microseconds."""
        return self.cpu / int(self.seen["tokens"]) * 1e6

    def also_per_token(self) -> float:
        """Return the CPU time of what stands in front of it per token, in microseconds."""
        return self.also / int(self.seen["tokens"]) * 1e6

    def per_request(self) -> float:
        """Return the CPU time of the serving process per request, in microseconds."""
        return self.cpu / int(self.seen["requests"]) * 1e6

    def figure(self, name: str) -> float:
        """Return one of the figures above, or one that the client saw, by its name."""
        return float(getattr(self, name)() if hasattr(self, name) else self.seen[name])


class Rounds:
    """Samples by load and contestant. ``watched`` are the processes of the measurement itself."""

    def __init__(self, watched: Iterable[int]) -> None:
        self._watched = tuple(watched)
        self.samples: dict[tuple[str, str], list[Sample]] = defaultdict(list)
        self.disturbed = 0
        """Samples that were kept although something else was running each time."""

    def run(self, plans: Iterable[Plan], rounds: int) -> None:
        """Drive all loads in each round, after a round that is thrown away.

        All of them in each: a machine is faster and slower by turns of minutes,
        as others use its caches, and each load is to see as much of both. And
        another contestant first in each: what was driven just before is another
        load for the first one, and the same for all others.
        """
        plans = tuple(plans)
        for number in range(-1, rounds):
            for plan in plans:
                for turn in range(plan.turns if number >= 0 else 1):
                    self._drive(plan, max(number, 0) * plan.turns + turn, warm_up=number < 0)
                progress(f"round {number + 1} of {rounds}: {plan.load.name}")

    def _drive(self, plan: Plan, turn: int, *, warm_up: bool) -> None:
        first = turn % len(plan.contestants)
        for contestant in (*plan.contestants[first:], *plan.contestants[:first]):
            # Its warm-up may be short: a round of its own takes as long as all others together.
            slow = contestant.name == "litellm"
            if warm_up and slow:
                contestant.client.load("tokens=20", streams=20)
                continue
            sample = self._calm(plan.load, contestant, 1 if slow else plan.repeat)
            if not warm_up:
                self.samples[plan.load.name, contestant.name].append(sample)

    def median(self, load: str, contestant: str, figure: str) -> float:
        """Return the median over the rounds: of a method of Sample, or of what the client saw."""
        samples = self.samples[load, contestant]
        return statistics.median(sample.figure(figure) for sample in samples)

    def worst(self, load: str, contestant: str, figure: str) -> float:
        """Return the highest of the rounds of what the client saw."""
        return float(max(sample.seen[figure] for sample in self.samples[load, contestant]))

    def ratio(self, load: str, one: str, other: str, figure: str) -> float:
        """Return the median over the turns of the ratio within a turn (of the medians, if one had fewer turns)."""
        ours, others = self.samples[load, one], self.samples[load, other]
        if len(ours) != len(others):
            return self.median(load, one, figure) / self.median(load, other, figure)
        pairs = zip(ours, others, strict=True)
        return statistics.median(mine.figure(figure) / theirs.figure(figure) for mine, theirs in pairs)

    def difference(self, load: str, one: str, other: str, figure: str) -> float:
        """Return the median over the turns of the difference within a turn (of the medians, if one had fewer turns)."""
        ours, others = self.samples[load, one], self.samples[load, other]
        if len(ours) != len(others):
            return self.median(load, one, figure) - self.median(load, other, figure)
        pairs = zip(ours, others, strict=True)
        return statistics.median(mine.figure(figure) - theirs.figure(figure) for mine, theirs in pairs)

    def ratios(self, loads: Sequence[str], contestant: str, figure: str) -> list[float]:
        """Return what each load has of what the first one has: the median over the rounds of the ratio within a round."""
        first = self.samples[loads[0], contestant]
        return [
            statistics.median(
                sample.figure(figure) / other.figure(figure)
                for sample, other in zip(self.samples[load, contestant], first, strict=True)
            )
            for load in loads
        ]

    def _calm(self, load: Load, contestant: Contestant, repeat: int) -> Sample:
        """Measure until nothing else is running meanwhile; after some attempts keep the calmest.

        LiteLLM has one attempt: it takes as long as all others together, and is far from any limit.
        """
        samples: list[Sample] = []
        for _ in range(1 if contestant.name == "litellm" else ATTEMPTS):
            samples.append(self._measure(load, contestant, repeat))
            seen = samples[-1].seen
            in_step = not load.ramp or seen["messages"] >= MERGED * seen["tokens"]
            if samples[-1].foreign <= DISTURBED and in_step:
                return samples[-1]
        self.disturbed += 1
        return min(samples, key=lambda sample: sample.foreign)

    def _measure(self, load: Load, contestant: Contestant, repeat: int) -> Sample:
        ours = {*self._watched, *contestant.pids, *contestant.also, contestant.client.pid}
        own, machine, started = cpu.seconds(ours), cpu.machine(), time.monotonic()
        spent, also = cpu.seconds(contestant.pids), cpu.seconds(contestant.also)
        seen = [contestant.client.load(load.message, **load.arguments()) for _ in range(repeat)]
        spent, also = cpu.seconds(contestant.pids) - spent, cpu.seconds(contestant.also) - also
        seconds = time.monotonic() - started
        foreign = max(0.0, cpu.machine() - machine - (cpu.seconds(ours) - own)) / seconds
        return Sample(spent, also, _together(seen, load, contestant), foreign)


def _together(seen: list[dict[str, Any]], load: Load, contestant: Contestant) -> dict[str, Any]:
    """Return what was seen in a row of loads as one; exit if anything was lost, because then nothing else counts."""
    together = dict(seen[-1])
    for figure in ("requests", "tokens", "messages", "failed", "cached"):
        together[figure] = sum(one[figure] for one in seen)
    expected = len(seen) * load.streams * load.requests * load.tokens
    if together["failed"] or together["tokens"] != expected:
        sys.exit(
            f"{contestant.label}, {load.name}: {together['tokens']} of {expected} tokens arrived, "
            f"{together['failed']} requests failed {seen[-1]['errors']}"
        )
    return together


def progress(text: str) -> None:
    """Say how far it is, on stderr."""
    sys.stderr.write(f"{text}\n")
