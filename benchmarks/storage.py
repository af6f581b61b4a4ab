"""What keeping question and answer in SQLite costs: CPU per chat, against this server with a storage that keeps nothing.

Both run the same server, with logs and telemetry as by default, over the same
upstream, which has its 200 tokens ready at once; each chat keeps a row with
the question and then settles it with the answer of 3 to 4 KB. They are asked
in turn, in rounds. Prints one table for each number of clients and exits with
1 if a ratio is over the limit.

    python benchmarks/storage.py [--rounds N] [--synchronous normal|full]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import lineup
import processes
from lineup import Contestant
from rounds import Load, Plan, Rounds

LIMIT = 1.3
TOKENS = 200
CLIENTS = (1, 32, 256)
CHATS = 1024
"""Chats of one measurement, by any number of clients."""
NOTHING_KEPT = str(lineup.CONTESTANTS / "nothing_kept.py")


@contextmanager
def nothing_kept(url: str) -> Iterator[Contestant]:
    """This server with a storage that keeps nothing."""
    port = processes.free_port()
    environ = {**lineup.settings_for(url), "CHAT_GRPC_PORT": str(port)}
    address = f"127.0.0.1:{port}"
    with (
        tempfile.TemporaryDirectory() as folder,
        processes.running([NOTHING_KEPT], folder, output=subprocess.DEVNULL, **environ) as process,
        lineup.client("grpc", address) as asking,
    ):
        processes.wait_until_serving(address)
        yield Contestant("nothing", "nothing kept", (process.pid,), asking)


def measure(count: int, synchronous: str) -> Rounds:
    """Drive all loads against both."""
    with ExitStack() as stack:
        upstream, url = stack.enter_context(processes.upstream_process())
        sqlite = stack.enter_context(lineup.this_server(url, CHAT_SQLITE_SYNCHRONOUS=synchronous))
        nothing = stack.enter_context(nothing_kept(url))
        rounds = Rounds((upstream, os.getpid(), sqlite.client.pid, nothing.client.pid, *sqlite.pids, *nothing.pids))
        rounds.run([Plan(load(clients), (sqlite, nothing)) for clients in CLIENTS], count)
        return rounds


def load(clients: int) -> Load:
    """Return what so many clients ask."""
    return Load(f"{clients} clients", f"tokens={TOKENS}", TOKENS, streams=clients, requests=CHATS // clients)


def rate(rounds: Rounds, name: str, contestant: str) -> float:
    """Return the chats that were answered in a second; the median of the rounds."""
    samples = rounds.samples[name, contestant]
    return statistics.median(int(sample.seen["requests"]) / float(sample.seen["seconds"]) for sample in samples)


def messages(rounds: Rounds, name: str, contestant: str) -> float:
    """Return the messages that a chat's answer came in; tokens that are there already leave together."""
    return rounds.median(name, contestant, "messages") / CHATS


def main() -> int:
    """Measure, print, and return the exit code."""
    parser = argparse.ArgumentParser(description="CPU per chat of keeping messages in SQLite.")
    parser.add_argument("--rounds", type=int, default=5, help="how often each load is driven (default: %(default)s)")
    parser.add_argument("--synchronous", choices=["normal", "full"], default="normal")
    options = parser.parse_args()
    rounds = measure(options.rounds, options.synchronous)
    print(
        f"CHAT_SQLITE_SYNCHRONOUS={options.synchronous}, {CHATS} chats of {TOKENS} tokens, CPU of the server's process"
    )
    print(f"medians of {options.rounds} rounds; file system of {tempfile.gettempdir()}, {Path(__file__).name}")
    print(f"{'':<12} {'SQLite':>34} {'nothing kept':>34} {'ratio':>8}")
    within = True
    for clients in CLIENTS:
        name = load(clients).name
        ratio = rounds.ratio(name, "grpc", "nothing", "per_request")
        within = within and ratio <= LIMIT
        cells = [
            f"{rounds.median(name, one, 'per_request'):.0f} us {rate(rounds, name, one):6.0f} chats/s"
            f" {messages(rounds, name, one):5.1f} msgs"
            for one in ("grpc", "nothing")
        ]
        print(f"{name:<12} {cells[0]:>34} {cells[1]:>34} {ratio:>8.2f}  {'holds' if ratio <= LIMIT else 'OVER'}")
    print(f"limit: {LIMIT} x; {rounds.disturbed} samples were disturbed by other work")
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main())
