"""Every figure of the budget, measured side by side on this machine, as one table.

All contestants run at once, each as its own process; each is asked by its own
client process (client.py), and all ask the same upstream (upstream.py). Prints
the table, writes it with a plot to docs/performance.md, and exits with 1 when a
limit does not hold.

    python benchmarks/run.py            all rows, half an hour
    python benchmarks/run.py --smoke    the rows of CPU per token, short; fails beyond 1.3 times a limit

LiteLLM and FastAPI run on the interpreter of requirements/bench.txt, which
`make bench` installs (BENCH_PYTHON names another one).
"""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import ExitStack

import lineup
import processes
import report
import rows
from rounds import Plan, Rounds, progress

ROUNDS = 5
MEMORY_ROUNDS = 3
SMOKE_ROUNDS = 3
SMOKE_SLACK = 1.3
REPEAT, REPEAT_GROWTH = 5, 3
"""How often a sample drives a load that takes a fraction of a second, and one of growth that takes a second or two."""
MORE_PACED, MORE_FIRST, TURNS_CACHED = 3, 14, 2
"""What this server and the bare relay are asked beside, and in the cache's row altogether, in each round: their samples
go up and down there by more than a limit's room."""


def main() -> int:
    """Measure, print, write, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="only CPU per token, short; nothing is written")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of each load (default: %(default)s)")
    parser.add_argument("--no-docs", action="store_true", help="print only")
    options = parser.parse_args()
    raise_file_limit()
    if options.smoke:
        found = smoke()
        print(report.table(found, markdown=False))
        return 0 if all(limit.holds(SMOKE_SLACK) for row in found for limit in row.limits) else 1
    found, disturbed = everything(options.rounds)
    print(report.table(found, markdown=False))
    note = f"Medians of {options.rounds} rounds. Other work on the machine disturbed {disturbed} measurements."
    print(note)
    if not options.no_docs:
        report.write(found, note, python=lineup.bench_python())
    return 0 if all(limit.holds() for row in found for limit in row.limits) else 1


def everything(count: int) -> tuple[list[rows.Row], int]:
    """Measure every row; return them, and how many measurements were disturbed."""
    python = lineup.bench_python()
    with processes.upstream_process() as (upstream, url):
        rounds = Rounds((os.getpid(), upstream))
        with lineup.everyone(url, upstream, python, smoke=False) as contestants:
            everybody, server = tuple(contestants.values()), contestants["grpc"]
            pair = (server, contestants["bare"])
            plans = [
                Plan(rows.INSTANT, everybody, REPEAT),
                Plan(rows.PACED_100, everybody),
                Plan(rows.PACED_100, pair, turns=MORE_PACED),
                Plan(rows.PACED_200, everybody),
                Plan(rows.PACED_200, pair, turns=MORE_PACED),
                Plan(rows.DELAY, [contestants[one] for one in ("grpc", "sse", "bare")]),
                Plan(rows.PACED_10, everybody),
                Plan(rows.FIRST_TOKEN, everybody),
                Plan(rows.FIRST_TOKEN, (*pair, contestants["direct"]), turns=MORE_FIRST),
                *(Plan(load, (server,), REPEAT_GROWTH) for load in rows.GROWTH_INSTANT),
                *(Plan(load, (server,), repeat) for load, repeat in zip(rows.GROWTH_PACED, (20, 2, 1), strict=True)),
            ]
            rounds.run(plans, count)
            # By itself: the cache would have let go of the answer after so many others.
            with rows.replaying(server) as replay:
                rounds.run([Plan(rows.CACHED, (server, replay), REPEAT, turns=TURNS_CACHED)], count)
        found = [
            *cpu_rows(rounds),
            rows.cpu_row(rounds, rows.PACED_200, "CPU per token, us, paced, 200 streams", bare=1.15, litellm=1 / 6),
            rows.first_token_row(rounds),
            rows.delay_row(rounds),
            rows.sse_row(rounds),
            rows.cached_row(rounds),
            rows.memory_row(url, min(count, MEMORY_ROUNDS)),
            rows.growth_row(rounds, rows.GROWTH_INSTANT, "CPU per token, us, instant, 10 / 100 / 1,000 streams"),
            rows.growth_row(
                rounds, rows.GROWTH_PACED, "CPU per token, us, up to 2,000 tokens/s over 10 / 100 / 1,000 streams"
            ),
            rows.soak_row(url, min(count, MEMORY_ROUNDS)),
        ]
    return found, rounds.disturbed


def smoke() -> list[rows.Row]:
    """Measure the rows of CPU per token in a short time."""
    with ExitStack() as stack:
        upstream, url = stack.enter_context(processes.upstream_process())
        contestants = stack.enter_context(lineup.everyone(url, upstream, lineup.bench_python(), smoke=True))
        rounds = Rounds((os.getpid(), upstream))
        # LiteLLM is far from its limit and takes half a minute a round: one has to do.
        slow = contestants.pop("litellm")
        plans = (
            Plan(rows.INSTANT, tuple(contestants.values()), REPEAT),
            Plan(rows.PACED_100, tuple(contestants.values())),
        )
        rounds.run(plans, SMOKE_ROUNDS)
        rounds.run([Plan(plan.load, (slow,)) for plan in plans], 1)
        return cpu_rows(rounds)


def cpu_rows(rounds: Rounds) -> list[rows.Row]:
    """Return the two rows that the short run has too."""
    return [
        rows.cpu_row(rounds, rows.INSTANT, "CPU per token, us, instant, 100 streams", bare=0.8, litellm=1 / 15),
        rows.cpu_row(rounds, rows.PACED_100, "CPU per token, us, paced, 100 streams", bare=1.15, litellm=1 / 6),
    ]


def raise_file_limit() -> None:
    """Allow what 2,000 streams need: each is a connection to the upstream. Child processes inherit it."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 16_384 if hard == resource.RLIM_INFINITY else min(hard, 16_384)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if wanted < 3 * rows.STREAMS_OPEN:
        progress(f"only {wanted} open files are allowed; the row of idle streams needs {3 * rows.STREAMS_OPEN}")


if __name__ == "__main__":
    sys.exit(main())
