"""The rows of the budget: what each one measures, its limit, and whether it holds."""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import lineup
import psutil
from lineup import Contestant
from rounds import Load, Rounds, progress

STREAMS_OPEN = 2000
BEHIND_MILLISECONDS = 100.0
"""How late the last tokens of a stream may be; a stream that is slower than its upstream is later with each token."""

INSTANT = Load("instant", "tokens=200", 200, streams=100)
PACED_100 = Load("paced, 100 streams", "tokens=200,rate=50", 200, streams=100, ramp=1.0)
PACED_200 = Load("paced, 200 streams", "tokens=200,rate=50", 200, streams=200, ramp=1.0)
PACED_10 = Load("paced, 10 streams", "tokens=200,rate=50", 200, streams=10, ramp=1.0)
# How late tokens are would else be decided by the client that asks for them: see http2.py.
DELAY = Load("paced, 200 streams, light client", "tokens=200,rate=50", 200, streams=200, ramp=1.0, light=True)
FIRST_TOKEN = Load("first token", "tokens=3,rate=200", 3, requests=100)
CACHED = Load("cached", "tokens=200", 200, streams=20, requests=50, same=True)
# The same number of tokens and of requests by each number of streams, so that nothing differs but this number...
GROWTH_INSTANT = tuple(
    Load(f"instant, {streams} streams", "tokens=200", 200, streams=streams, requests=1000 // streams)
    for streams in (10, 100, 1000)
)
# ... and here the same number of tokens per second: up to 2,000 while the callers come, and down again while they leave.
# Each asks once, as more or fewer rounds of asking would keep those 2,000 up for a longer or shorter part of the time.
GROWTH_PACED = tuple(
    Load(f"paced, {streams} streams at {rate}/s", f"tokens=50,rate={rate}", 50, streams=streams, ramp=50 / rate)
    for streams, rate in ((10, 200), (100, 20), (1000, 2))
)
SOAK = Load("soak", "tokens=20", 20, streams=100, requests=20)
# Heap and SQLite's page caches find their size within 40,000 requests, which is what the warm-up is for; what comes after
# it is 40 minutes of 20 chats a second.
SOAK_WARM_UP, SOAK_BLOCKS = 20, 24
SOAK_SETTINGS = {"CHAT_SESSION_TTL": "5", "CHAT_CACHE_SECONDS": "5"}
SOAK_GROWTH = 0.02
"""How much the memory may grow over all blocks: as much as it goes up and down between two of them."""


@dataclass(frozen=True, slots=True)
class Limit:
    """A bound on one number; ``text`` says number and bound, such as "0.36 x bare (at most 0.8)"."""

    text: str
    value: float
    bound: float

    def holds(self, slack: float = 1.0) -> bool:
        """Tell whether the number is within the bound, or within ``slack`` times it."""
        return self.value <= self.bound * slack


@dataclass(frozen=True, slots=True)
class Row:
    """One row: a figure, what each contestant has, and the limits; no limits mean that it could not be measured."""

    figure: str
    cells: Mapping[str, str]
    limits: tuple[Limit, ...]
    numbers: Mapping[str, float] = field(default_factory=dict)

    def verdict(self) -> str:
        """Return holds, over, or -."""
        if not self.limits:
            return "-"
        return "holds" if all(limit.holds() for limit in self.limits) else "OVER"


def cpu_row(rounds: Rounds, load: Load, figure: str, *, bare: float, litellm: float) -> Row:
    """CPU of the serving process per relayed token."""
    cells, numbers = {}, {}
    for name in _names(rounds, load):
        numbers[name] = rounds.median(load.name, name, "per_token")
        cells[name] = f"{numbers[name]:.1f}"
        if also := rounds.median(load.name, name, "also_per_token"):
            cells[name] += f" + {also:.1f}"
    to_bare = rounds.ratio(load.name, "grpc", "bare", "per_token")
    to_litellm = rounds.ratio(load.name, "grpc", "litellm", "per_token")
    limits = (
        Limit(f"{to_bare:.2f} x bare (at most {bare})", to_bare, bare),
        Limit(f"1/{1 / to_litellm:.0f} of LiteLLM (at most 1/{1 / litellm:.0f})", to_litellm, litellm),
    )
    return Row(figure, cells, limits, numbers)


def first_token_row(rounds: Rounds) -> Row:
    """How much later the first token comes than from the upstream itself."""
    name = FIRST_TOKEN.name
    names = [one for one in _names(rounds, FIRST_TOKEN) if one != "direct"]
    added = {one: rounds.difference(name, one, "direct", "first") for one in names}
    cells = {one: f"{value:.2f}" for one, value in added.items()}
    cells["direct"] = f"({rounds.median(name, 'direct', 'first'):.2f})"
    to_bare, to_litellm = added["grpc"] / added["bare"], added["grpc"] / added["litellm"]
    limits = (
        Limit(f"{to_bare:.2f} x bare (at most 1.5)", to_bare, 1.5),
        Limit(f"1/{1 / to_litellm:.1f} of LiteLLM (at most 1/4)", to_litellm, 0.25),
    )
    return Row("first token, ms more than the upstream's own, 1 client, p50", cells, limits, added)


def delay_row(rounds: Rounds) -> Row:
    """How long tokens are on their way when many streams flow, and whether any stream falls behind."""
    name = DELAY.name
    p99 = {one: rounds.median(name, one, "p99") for one in _names(rounds, DELAY)}
    behind = rounds.worst(name, "grpc", "behind")
    limits = (
        Limit(f"{p99['grpc']:.1f} ms (at most 10)", p99["grpc"], 10.0),
        Limit(
            f"slowest stream {behind:.1f} ms late at its end (at most {BEHIND_MILLISECONDS:.0f})",
            behind,
            BEHIND_MILLISECONDS,
        ),
    )
    cells = {one: f"{value:.1f}" for one, value in p99.items()}
    return Row("delay of a token, ms, 200 streams x 50 tokens/s, p99", cells, limits, p99)


def sse_row(rounds: Rounds) -> Row:
    """How much later a token comes as a server-sent event through Envoy than over gRPC, where nothing is crowded."""
    name = PACED_10.name
    p50 = {one: rounds.median(name, one, "p50") for one in _names(rounds, PACED_10)}
    added = rounds.difference(name, "sse", "grpc", "p50")
    cells = {one: f"{value:.2f}" for one, value in p50.items()}
    limit = Limit(f"SSE {added:+.2f} ms to gRPC (at most +0.5)", added, 0.5)
    return Row("delay of a token, ms, 10 streams x 50 tokens/s, p50", cells, (limit,), p50)


@contextmanager
def replaying(server: Contestant) -> Iterator[Contestant]:
    """A bare stream of the very messages with which a server answers CACHED from its cache."""
    server.client.load(CACHED.message, same=True)
    seen = server.client.load(CACHED.message, same=True, keep_events=True)
    if seen["cached"] != 1:
        sys.exit("an answer that was given before did not come from the cache")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "messages"
        events = [bytes.fromhex(event) for event in seen["events"]]
        file.write_bytes(b"".join(len(event).to_bytes(4, "big") + event for event in events))
        with lineup.bare("--replay", str(file)) as bare:
            yield bare


def cached_row(rounds: Rounds) -> Row:
    """CPU per request that the cache answers, against a bare stream of the very same messages."""
    figure = "Chat from the cache, CPU per request, us"
    for sample in rounds.samples[CACHED.name, "grpc"]:
        cached, requests = sample.seen["cached"], sample.seen["requests"]
        if cached != requests:
            return Row(figure, {"grpc": f"only {cached} of {requests} were cached"}, ())
    numbers = {one: rounds.median(CACHED.name, one, "per_request") for one in ("grpc", "bare")}
    ratio = rounds.ratio(CACHED.name, "grpc", "bare", "per_request")
    cells = {one: f"{value:.0f}" for one, value in numbers.items()}
    return Row(figure, cells, (Limit(f"{ratio:.2f} x bare stream (at most 2.5)", ratio, 2.5),), numbers)


def memory_row(url: str, count: int) -> Row:
    """Memory of a stream that is open and idle: the upstream has sent one token and stalls."""
    patient = dict.fromkeys(("CHAT_LLM_FIRST_TOKEN_TIMEOUT", "CHAT_LLM_IDLE_TIMEOUT", "CHAT_LLM_TIMEOUT"), "3600")
    starts: dict[str, Callable[[], AbstractContextManager[Contestant]]] = {
        "grpc": lambda: lineup.this_server(url, **patient),
        "bare": lambda: lineup.bare(url),
    }
    sizes: dict[str, list[float]] = {name: [] for name in starts}
    opened = dict.fromkeys(starts, STREAMS_OPEN)
    for number in range(count):
        for name, start in starts.items():
            with start() as contestant:
                size, count = _memory_per_stream(contestant)
                sizes[name].append(size)
                opened[name] = min(opened[name], count)
        progress(f"idle streams: round {number + 1} of {count}")
    numbers = {name: statistics.median(sizes[name]) for name in starts}
    cells = {
        name: f"{value:.1f}" + (f" ({opened[name]:,} opened)" if opened[name] < STREAMS_OPEN else "")
        for name, value in numbers.items()
    }
    ratio = numbers["grpc"] / numbers["bare"]
    missing = STREAMS_OPEN - opened["grpc"]
    limits = [Limit(f"{ratio:.2f} x bare (at most 1.5)", ratio, 1.5)]
    if missing:
        limits.append(Limit(f"{missing:,} of {STREAMS_OPEN:,} streams got no token", missing, 0))
    return Row(f"memory of an idle stream, {STREAMS_OPEN:,} open, kB", cells, tuple(limits), numbers)


def _memory_per_stream(contestant: Contestant) -> tuple[float, int]:
    """Return the kilobytes of one of the open streams, and how many could be opened."""
    process = psutil.Process(contestant.pids[0])
    contestant.client.load("tokens=20", streams=100, requests=2)
    before = process.memory_info().rss
    contestant.client.begin("stall", streams=STREAMS_OPEN, hold=True, ramp=5.0)
    opened = int(contestant.client.answer()["opened"])
    grown = process.memory_info().rss - before
    contestant.client.line()
    contestant.client.answer()
    return grown / STREAMS_OPEN / 1000, opened


def growth_row(rounds: Rounds, loads: tuple[Load, ...], figure: str) -> Row:
    """CPU per token by the number of streams."""
    numbers = {str(load.streams): rounds.median(load.name, "grpc", "per_token") for load in loads}
    ratios = rounds.ratios([load.name for load in loads], "grpc", "per_token")
    ratio = max(ratios) / min(ratios)
    cells = {"grpc": " / ".join(f"{value:.1f}" for value in numbers.values())}
    return Row(figure, cells, (Limit(f"{ratio:.2f} x from least to most (at most 1.3)", ratio, 1.3),), numbers)


def soak_row(url: str, count: int) -> Row:
    """Memory over many requests, after a warm-up."""
    soaks = []
    for number in range(count):
        soaks.append(_soak(url))
        progress(f"soak: round {number + 1} of {count}")
    growths = [_growth(sizes) for sizes in soaks]
    growth = statistics.median(growths)
    sizes = soaks[growths.index(statistics.median_low(growths))]
    requests = SOAK_BLOCKS * SOAK.streams * SOAK.requests
    return Row(
        f"soak, memory after warm-up and {requests:,} requests later, MB",
        {"grpc": f"{sizes[0]:.1f} / {sizes[-1]:.1f}"},
        (Limit(f"{growth:+.1%} from the first half to the second (at most {SOAK_GROWTH:+.0%})", growth, SOAK_GROWTH),),
        {str(number): size for number, size in enumerate(sizes)},
    )


def _soak(url: str) -> list[float]:
    """Return the megabytes of a server at the end of each block of requests after the warm-up."""
    with lineup.this_server(url, **SOAK_SETTINGS) as contestant:
        process = psutil.Process(contestant.pids[0])
        sizes = []
        for number in range(SOAK_WARM_UP + SOAK_BLOCKS + 1):
            contestant.client.load(SOAK.message, **SOAK.arguments())
            if number >= SOAK_WARM_UP:
                sizes.append(process.memory_info().rss / 1e6)
    return sizes


def _growth(sizes: list[float]) -> float:
    half = len(sizes) // 2
    return statistics.median(sizes[-half:]) / statistics.median(sizes[:half]) - 1


def _names(rounds: Rounds, load: Load) -> list[str]:
    return [name for (of, name) in rounds.samples if of == load.name]
