"""The chat page's methods: its files, and the conversation that it shows again after a reload."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from google.api.httpbody_pb2 import HttpBody
from msgspec.json import encode

from chat_grpc._gen.chat.v1 import types_pb2
from chat_grpc._gen.gateway.v1 import web_pb2, web_pb2_grpc
from chat_grpc.conversation import access
from chat_grpc.domain import Message
from chat_grpc.errors import Forbidden, NotFound
from chat_grpc.rpc.convert import timestamp
from chat_grpc.rpc.interceptor import Context
from gateway import rules
from gateway.files import HEADERS, File, Files, answer

if TYPE_CHECKING:
    from chat_grpc.conversation.health import HealthReporter
    from chat_grpc.conversation.history import History

PAGE = Path(__file__).parent / "page"
INDEX = "index.html"
DOCS = "/docs"

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    # No text becomes markup or code, not even by a mistake in the page's own scripts.
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
PAGE_HEADERS = (
    ("content-security-policy", CONTENT_SECURITY_POLICY),
    ("permissions-policy", "camera=(), geolocation=(), microphone=()"),
)
VARY = (("vary", "accept"),)


class WebServicer(web_pb2_grpc.WebServiceServicer):
    """Answers gateway.v1.WebService.

    Args:
        history: what was said.
        health: what knows the state and the version of the service.
        folder: the page's files.
    """

    def __init__(self, history: History, health: HealthReporter, folder: Path = PAGE) -> None:
        self._history = history
        self._health = health
        self._files = Files(folder)

    async def GetIndex(self, request: web_pb2.GetIndexRequest, context: Context) -> HttpBody:
        """Answer the chat page or, unless HTML is asked for by name, a JSON object."""
        accept = str(dict(context.invocation_metadata() or ()).get("accept", ""))
        if not accepts_html(accept):
            report = await self._health.report()
            await context.send_initial_metadata((*VARY, *HEADERS))
            fields = {"name": "chat-grpc", "version": report.version, "status": report.status, "docs": DOCS}
            return HttpBody(content_type="application/json", data=encode(fields))
        return await answer(self._file(INDEX), context, (*VARY, *PAGE_HEADERS))

    async def GetAsset(self, request: web_pb2.GetAssetRequest, context: Context) -> HttpBody:
        """Answer a file of the page.

        Raises:
            NotFound: there is none of that name.
        """
        return await answer(self._file(request.name), context)

    async def ListSessionMessages(
        self, request: web_pb2.ListSessionMessagesRequest, context: Context
    ) -> web_pb2.ListSessionMessagesResponse:
        """List a page of a conversation.

        Raises:
            InvalidRequest: a field breaks a rule.
            NotFound: there is no such conversation.
            Forbidden: it is another user's; where nobody says who calls, any named user's.
            StorageUnavailable: the history can't be read.
        """
        rules.check(request)
        page = await self._history.list_messages(
            "", request.session_id, page_size=request.limit, page_token=request.page_token
        )
        if not page.messages and not request.page_token:
            raise NotFound("there is no such session", reason="SESSION_NOT_FOUND")
        # Where nobody says who calls, the session's id is all that is shown: enough for what nobody put a name to.
        if access.identity() is None and any(message.user_id for message in page.messages):
            raise Forbidden("the session belongs to a named user", reason="SESSION_OF_ANOTHER_USER")
        await context.send_initial_metadata((("cache-control", "no-store"),))
        return web_pb2.ListSessionMessagesResponse(
            messages=[_message(item) for item in page.messages], next_page_token=page.next_page_token
        )

    def _file(self, name: str) -> File:
        file = self._files.get(name)
        if file is None:
            raise NotFound("there is no such file", reason="ASSET_NOT_FOUND")
        return file


def accepts_html(accept: str) -> bool:
    """Tell whether an Accept header names text/html. ``*/*`` does not: it is what curl and most libraries send."""
    return any(part.partition(";")[0].strip().lower() == "text/html" for part in accept.split(","))


def _message(item: Message) -> web_pb2.SessionMessage:
    return web_pb2.SessionMessage(
        id=item.id,
        message=item.message,
        answer=item.answer,
        status=item.status,
        finish_reason=item.finish_reason or "",
        error_reason=item.error_reason,
        model=item.model,
        tokens_used=item.usage.total_tokens if item.usage else 0,
        created_at=timestamp(item.created_at),
        completed_at=timestamp(item.completed_at) if item.completed_at else None,
        cached=item.cached,
        degraded=list(item.degraded),
        passages=[
            types_pb2.Passage(title=found.title, score=found.score, snippet=found.snippet, tags=found.tags)
            for found in item.passages
        ],
    )
