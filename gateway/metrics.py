"""GET /metrics: what the server has counted, for Prometheus."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from pathlib import Path

import grpc
from google.api.httpbody_pb2 import HttpBody

from chat_grpc._gen.gateway.v1 import metrics_pb2, metrics_pb2_grpc
from chat_grpc.telemetry import exposition
from chat_grpc.telemetry.metrics import Metrics
from chat_grpc.telemetry.siblings import Siblings


class MetricsServicer(metrics_pb2_grpc.MetricsServiceServicer):
    """gateway.v1.MetricsService over the Metrics of one server, which may be several workers."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._siblings: Siblings | None = None

    async def join(self, folder: Path, number: int) -> Siblings:
        """Answer for all workers that meet in a folder from now on; to be closed by the caller."""
        self._siblings = Siblings(folder, number, self._read)
        await self._siblings.open()
        return self._siblings

    async def GetMetrics(
        self,
        request: metrics_pb2.GetMetricsRequest,
        context: grpc.aio.ServicerContext[metrics_pb2.GetMetricsRequest, Awaitable[HttpBody]],
    ) -> HttpBody:
        """Return all metrics as text."""
        text = await (self._siblings.read_all() if self._siblings is not None else self._read())
        return HttpBody(content_type=exposition.CONTENT_TYPE, data=text)

    async def _read(self) -> bytes:
        # Read here, where they are counted; written on a thread, so that no answer waits for it.
        return await asyncio.to_thread(exposition.write, self._metrics.families())
