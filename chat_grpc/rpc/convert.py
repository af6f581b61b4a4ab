"""Between the domain's words and chat.v1's messages."""

from __future__ import annotations

from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from chat_grpc import domain
from chat_grpc._gen.chat.v1 import chat_pb2, health_pb2, history_pb2, types_pb2
from chat_grpc.conversation.health import Health, HealthReport
from chat_grpc.rpc.caller import Caller
from chat_grpc.rpc.interceptor import is_request_id
from chat_grpc.telemetry import context

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SECONDS_OF_A_DAY = 86_400

FINISH_REASONS = {
    domain.FinishReason.STOP: types_pb2.FINISH_REASON_STOP,
    domain.FinishReason.LENGTH: types_pb2.FINISH_REASON_LENGTH,
    domain.FinishReason.CONTENT_FILTER: types_pb2.FINISH_REASON_CONTENT_FILTER,
}
PARTS = {
    domain.Part.RETRIEVAL: types_pb2.COMPONENT_RETRIEVAL,
    domain.Part.LLM: types_pb2.COMPONENT_LLM,
    domain.Part.STORAGE: types_pb2.COMPONENT_STORAGE,
    domain.Part.CACHE: types_pb2.COMPONENT_CACHE,
}
STATUSES = {
    domain.Status.PENDING: history_pb2.Message.STATUS_PENDING,
    domain.Status.COMPLETED: history_pb2.Message.STATUS_COMPLETED,
    domain.Status.PARTIAL: history_pb2.Message.STATUS_PARTIAL,
    domain.Status.CANCELLED: history_pb2.Message.STATUS_CANCELLED,
    domain.Status.FAILED: history_pb2.Message.STATUS_FAILED,
    domain.Status.INTERRUPTED: history_pb2.Message.STATUS_INTERRUPTED,
}
HEALTHS = {
    Health.HEALTHY: health_pb2.GetHealthResponse.STATUS_HEALTHY,
    Health.DEGRADED: health_pb2.GetHealthResponse.STATUS_DEGRADED,
    Health.UNHEALTHY: health_pb2.GetHealthResponse.STATUS_UNHEALTHY,
}


def chat_request(proto: chat_pb2.ChatRequest, caller: Caller) -> domain.ChatRequest:
    """Read a request; one that names itself gives its name to the logs."""
    if proto.request_id and is_request_id(proto.request_id):
        context.set_request_id(proto.request_id, by_caller=True)
    options = proto.options
    return domain.ChatRequest(
        message=proto.message,
        user_id=proto.user_id,
        session_id=proto.session_id,
        request_id=proto.request_id or context.request_id(),
        idempotent=context.named_by_caller(),
        address=caller.address,
        deadline=caller.deadline,
        options=domain.ChatOptions(
            max_tokens=options.max_tokens if options.HasField("max_tokens") else None,
            temperature=options.temperature if options.HasField("temperature") else None,
            model=options.model,
            retrieval=options.retrieval if options.HasField("retrieval") else True,
            top_k=options.top_k if options.HasField("top_k") else None,
            filters=dict(options.filters) if options.filters else {},
            skip_cache=options.skip_cache,
        ),
    )


def event(item: domain.Started | domain.Retrieved | domain.Completed) -> chat_pb2.ChatResponse:
    """Write an event other than text."""
    match item:
        case domain.Started():
            started = chat_pb2.Started(
                message_id=item.message_id, session_id=item.session_id, request_id=item.request_id
            )
            return chat_pb2.ChatResponse(started=started)
        case domain.Retrieved():
            passages = [
                types_pb2.Passage(title=found.title, score=found.score, snippet=found.snippet, tags=found.tags)
                for found in item.passages
            ]
            return chat_pb2.ChatResponse(retrieval=chat_pb2.Retrieval(passages=passages, took_ms=item.took_ms))
        case domain.Completed():
            completed = chat_pb2.Completed(
                message_id=item.message_id,
                session_id=item.session_id,
                model=item.model,
                created_at=timestamp(item.created_at),
                cached=item.cached,
                finish_reason=FINISH_REASONS[item.finish_reason],
                usage=usage(item.usage),
                degraded=[PARTS[part] for part in item.degraded],
                suggested_questions=[suggested_question(question) for question in item.suggested_questions],
            )
            return chat_pb2.ChatResponse(completed=completed)


def suggested_question(item: domain.SuggestedQuestion) -> chat_pb2.SuggestedQuestion:
    """Write a question worth asking."""
    return chat_pb2.SuggestedQuestion(question=item.question, category=item.category)


def message(item: domain.Message) -> history_pb2.Message:
    """Write a message of the history."""
    return history_pb2.Message(
        id=item.id,
        user_id=item.user_id,
        session_id=item.session_id,
        request_id=item.request_id,
        message=item.message,
        answer=item.answer,
        status=STATUSES[item.status],
        finish_reason=FINISH_REASONS[item.finish_reason] if item.finish_reason else types_pb2.FINISH_REASON_UNSPECIFIED,
        error_reason=item.error_reason,
        model=item.model,
        usage=usage(item.usage) if item.usage else None,
        created_at=timestamp(item.created_at),
        completed_at=timestamp(item.completed_at) if item.completed_at else None,
        cached=item.cached,
        degraded=[PARTS[part] for part in item.degraded],
    )


def usage(item: domain.Usage) -> types_pb2.Usage:
    """Write what an answer cost."""
    return types_pb2.Usage(
        prompt_tokens=item.prompt_tokens,
        completion_tokens=item.completion_tokens,
        total_tokens=item.total_tokens,
        cost_usd=item.cost_usd,
        estimated=item.estimated,
    )


def health(report: HealthReport) -> health_pb2.GetHealthResponse:
    """Write the state of the service."""
    return health_pb2.GetHealthResponse(
        status=HEALTHS[report.status],
        components=[
            health_pb2.ComponentHealth(component=PARTS[part.part], status=HEALTHS[part.status], detail=part.detail)
            for part in report.parts
        ],
        memvid_frame_count=report.frame_count,
        active_sessions=report.active_sessions,
        version=report.version,
        model=report.model,
    )


def timestamp(moment: datetime) -> Timestamp:
    """Write a time that knows its zone. ``FromDatetime`` goes by way of a calendar, and takes three times as long."""
    since = moment - EPOCH
    return Timestamp(seconds=since.days * SECONDS_OF_A_DAY + since.seconds, nanos=since.microseconds * 1000)
