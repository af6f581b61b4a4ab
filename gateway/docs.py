"""The REST API's documentation: the OpenAPI document, Swagger UI and ReDoc."""

from __future__ import annotations

import hashlib
from pathlib import Path

from google.api.httpbody_pb2 import HttpBody

from chat_grpc._gen.gateway.v1 import docs_pb2, docs_pb2_grpc
from chat_grpc.errors import NotFound
from chat_grpc.rpc.interceptor import Context
from gateway.files import File, Files, answer

DOCUMENT = Path(__file__).parent / "openapi.json"
"""Written by ``make generate`` from protos/gateway/v1."""
PAGES = Path(__file__).parent / "docs_pages"
VENDOR = PAGES / "vendor"
"""Swagger UI and ReDoc as they are published; scripts/docs_assets.py puts them there."""

CONTENT_SECURITY_POLICY = (
    "default-src 'none'",
    "script-src 'self'",
    # Both build style sheets while they run.
    "style-src 'self' 'unsafe-inline'",
    "connect-src 'self'",
    "img-src 'self' data:",
    # ReDoc's search runs beside the page, in a worker that it carries within itself.
    "worker-src blob:",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
)
PAGE_HEADERS = (("content-security-policy", "; ".join(CONTENT_SECURITY_POLICY)),)


class DocsServicer(docs_pb2_grpc.DocsServiceServicer):
    """Answers gateway.v1.DocsService."""

    def __init__(self) -> None:
        data = DOCUMENT.read_bytes()
        self._document = File(data, "application/json", f'"{hashlib.sha256(data).hexdigest()[:32]}"', 0)
        self._pages, self._vendor = Files(PAGES), Files(VENDOR)

    async def GetOpenApi(self, request: docs_pb2.GetOpenApiRequest, context: Context) -> HttpBody:
        """Answer the OpenAPI document."""
        return await answer(self._document, context)

    async def GetSwaggerPage(self, request: docs_pb2.GetSwaggerPageRequest, context: Context) -> HttpBody:
        """Answer the page with Swagger UI."""
        return await answer(self._file("swagger.html"), context, PAGE_HEADERS)

    async def GetRedocPage(self, request: docs_pb2.GetRedocPageRequest, context: Context) -> HttpBody:
        """Answer the page with ReDoc."""
        return await answer(self._file("redoc.html"), context, PAGE_HEADERS)

    async def GetDocsAsset(self, request: docs_pb2.GetDocsAssetRequest, context: Context) -> HttpBody:
        """Answer a script or a style sheet.

        Raises:
            NotFound: there is none of that name.
        """
        if request.name.endswith(".html"):  # the pages have paths of their own
            raise _not_found()
        return await answer(self._file(request.name), context)

    def _file(self, name: str) -> File:
        file = self._pages.get(name) or self._vendor.get(name)
        if file is None:
            raise _not_found()
        return file


def _not_found() -> NotFound:
    return NotFound("there is no such file", reason="ASSET_NOT_FOUND")
