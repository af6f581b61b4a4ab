"""How long a first token is on its way: from the upstream's first byte to a gRPC client.

The upstream writes into each token when it sent it. One client asks REQUESTS
times, one after another; the time is the whole way through the server, with
the network stack of this machine on both sides. Prints the percentiles and
exits with 1 if the median is over the limit.

    python benchmarks/first_token.py
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time

import grpc
import processes
import stamp

from chat_grpc._gen.chat.v1 import chat_pb2, chat_pb2_grpc

REQUESTS = 300
WARM_UP = 30
LIMIT_MILLISECONDS = 3.0


def main() -> int:
    """Measure, print, and return the exit code."""
    with tempfile.TemporaryDirectory() as folder, processes.upstream() as url:
        settings = {
            "CHAT_LLM_PROVIDER": "local",
            "CHAT_LLM_BASE_URL": url,
            "CHAT_LLM_MODEL": "tokens=3,rate=200",
            "CHAT_MEMVID_GRPC_URL": "127.0.0.1:9",
            "CHAT_ADDRESS_RATE_LIMIT": "off",
        }
        with processes.server(folder, **settings) as (_, address):
            processes.wait_until_serving(address)
            delays = asyncio.run(measure(address))
    hundredths = statistics.quantiles(delays, n=100)
    median, p99 = statistics.median(delays), hundredths[98]
    holds = median <= LIMIT_MILLISECONDS
    print(f"first token, upstream's first byte to the client: p50 {median:.2f} ms, p99 {p99:.2f} ms")
    print(f"limit: p50 {LIMIT_MILLISECONDS} ms; {REQUESTS} requests  {'holds' if holds else 'OVER THE LIMIT'}")
    return 0 if holds else 1


async def measure(address: str) -> list[float]:
    """Return the milliseconds that each first token was on its way."""
    delays = []
    async with grpc.aio.insecure_channel(address) as channel:
        stub = chat_pb2_grpc.ChatServiceStub(channel)
        for number in range(WARM_UP + REQUESTS):
            first = True
            async for event in stub.Chat(chat_pb2.ChatRequest(message=f"How {number}?")):
                if first and event.HasField("delta"):
                    first = False
                    if number >= WARM_UP:
                        delays.append(stamp.age(event.delta.text.split()[0], time.monotonic_ns()))
    return delays


if __name__ == "__main__":
    sys.exit(main())
