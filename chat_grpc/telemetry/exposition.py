"""Writing metrics in Prometheus's text format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from chat_grpc.telemetry.series import Family, Kind, Spread

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def write(families: Iterable[Family]) -> bytes:
    """Return the families, with those of the process and of Python's garbage collector, as text.

    Meant for a thread: the first call imports prometheus_client, and each takes
    a few milliseconds.
    """
    from prometheus_client.exposition import generate_latest
    from prometheus_client.gc_collector import GCCollector
    from prometheus_client.process_collector import ProcessCollector
    from prometheus_client.registry import CollectorRegistry

    registry = CollectorRegistry()
    registry.register(_Collector(families))
    ProcessCollector(registry=registry)
    GCCollector(registry=registry)
    return generate_latest(registry)


class _Collector:
    """What a registry asks for its metrics."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        """Yield each family in prometheus_client's own words."""
        from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        kinds: dict[Kind, Any] = {
            Kind.COUNTER: CounterMetricFamily,
            Kind.GAUGE: GaugeMetricFamily,
            Kind.HISTOGRAM: HistogramMetricFamily,
        }
        for family in self._families:
            metric = kinds[family.kind](family.name, family.help, labels=family.labels)
            for labels, value in family.series:
                if isinstance(value, Spread):
                    metric.add_metric(labels, _buckets(value), value.sum)
                else:
                    metric.add_metric(labels, value)
            yield metric


def _buckets(spread: Spread) -> list[Any]:
    """Return cumulative counts by upper bound, as Prometheus wants them."""
    bounds = (*map(str, spread.bounds), "+Inf")
    return list(zip(bounds, accumulate(spread.counts), strict=True))
