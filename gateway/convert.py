"""Between the domain's words and gateway.v1's messages."""

from __future__ import annotations

import platform
import sys
from datetime import UTC, datetime

import grpc

from chat_grpc._gen.gateway.v1 import gateway_pb2
from chat_grpc.conversation.health import Health, HealthReport
from chat_grpc.rpc.convert import suggested_question, timestamp, usage
from gateway.answers import Whole


def answer(item: Whole) -> gateway_pb2.SendMessageResponse:
    """Write a whole answer."""
    completed = item.completed
    return gateway_pb2.SendMessageResponse(
        id=completed.message_id,
        content=item.text,
        model=completed.model,
        timestamp=timestamp(completed.created_at),
        cached=completed.cached,
        session_id=completed.session_id,
        finish_reason=completed.finish_reason,
        degraded=completed.degraded,
        usage=usage(completed.usage),
        suggested_questions=[suggested_question(item) for item in completed.suggested_questions],
    )


def health(report: HealthReport, *, detailed: bool) -> gateway_pb2.GetHealthResponse:
    """Write the state of the service, and what it runs on if that is asked for."""
    up = {str(part.part): part.status is Health.HEALTHY for part in report.parts}
    # The cache is a part of this process, and up with it, until one is reported to be elsewhere.
    services = gateway_pb2.Services(storage=up["storage"], llm=up["llm"], cache=up.get("cache", True))
    environment = gateway_pb2.Environment(
        python=platform.python_version(), grpc=grpc.__version__, platform=sys.platform, model=report.model
    )
    return gateway_pb2.GetHealthResponse(
        status=report.status,
        memvid_connected=report.retrieval_up,
        memvid_frame_count=report.frame_count,
        active_sessions=report.active_sessions,
        version=report.version,
        timestamp=timestamp(datetime.now(UTC)),
        services=services,
        environment=environment if detailed else None,
    )
