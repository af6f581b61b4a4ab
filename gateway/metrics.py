"""GET /metrics: what the server has counted, for Prometheus."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import grpc
from google.api.httpbody_pb2 import HttpBody

from chat_grpc._gen.gateway.v1 import metrics_pb2, metrics_pb2_grpc
from chat_grpc.telemetry import exposition
from chat_grpc.telemetry.metrics import Metrics


class MetricsServicer(metrics_pb2_grpc.MetricsServiceServicer):
    """gateway.v1.MetricsService over the Metrics of one server."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def GetMetrics(
        self,
        request: metrics_pb2.GetMetricsRequest,
        context: grpc.aio.ServicerContext[metrics_pb2.GetMetricsRequest, Awaitable[HttpBody]],
    ) -> HttpBody:
        """Return all metrics as text."""
        # Read here, where they are counted; written on a thread, so that no answer waits for it.
        text = await asyncio.to_thread(exposition.write, self._metrics.families())
        return HttpBody(content_type=exposition.CONTENT_TYPE, data=text)
