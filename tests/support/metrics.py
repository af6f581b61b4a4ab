"""Reading a server's metrics as Prometheus does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from chat_grpc._gen.gateway.v1 import metrics_pb2, metrics_pb2_grpc


class Scrape:
    """All metrics of one moment."""

    def __init__(self, text: str) -> None:
        self.families: list[Metric] = list(text_string_to_metric_families(text))

    def __call__(self, name: str, **labels: str) -> float:
        """Return the sum of the samples of a name that have these labels, among others."""
        values = [
            sample.value
            for family in self.families
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]
        assert values, f"there is no {name} with {labels}"
        return sum(values)

    def has(self, name: str, **labels: str) -> bool:
        """Tell whether there is such a sample."""
        return any(
            sample.name == name and labels.items() <= sample.labels.items()
            for family in self.families
            for sample in family.samples
        )

    def series(self) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
        """Return every series: a name with labels."""
        return {
            (sample.name, tuple(sorted(sample.labels.items()))) for family in self.families for sample in family.samples
        }


async def scrape(channel: grpc.aio.Channel) -> Scrape:
    """Read the metrics over gRPC."""
    answer = await metrics_pb2_grpc.MetricsServiceStub(channel).GetMetrics(metrics_pb2.GetMetricsRequest())
    assert answer.content_type == "text/plain; version=0.0.4; charset=utf-8"
    return Scrape(answer.data.decode())


async def scrape_until(channel: grpc.aio.Channel, seen: Callable[[Scrape], bool]) -> Scrape:
    """Read the metrics again and again, until they are as a test waits for."""
    async with asyncio.timeout(10):
        while not seen(now := await scrape(channel)):
            await asyncio.sleep(0.02)
    return now
