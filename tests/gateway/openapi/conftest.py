"""The whole server behind the real Envoy, and the document that it answers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.gateway.edges import Edge, running_edge
from tests.support.fixtures import StartService
from tests.support.process import ROOT

LIMITS_OFF = {"CHAT_RATE_LIMIT": "off", "CHAT_ADDRESS_RATE_LIMIT": "off", "CHAT_REST_RATE_LIMIT": "off"}


@pytest.fixture
def document() -> dict[str, Any]:
    """The OpenAPI document as it is committed."""
    found: dict[str, Any] = json.loads((ROOT / "gateway" / "openapi.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture
async def site(start: StartService, tmp_path: Path) -> AsyncIterator[Edge]:
    """Envoy in front of the whole server, which refuses nobody for asking too much."""
    async with start(**LIMITS_OFF) as service, running_edge(int(service.address.rpartition(":")[2]), tmp_path) as edge:
        yield edge


@pytest.fixture
async def http(site: Edge) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of it."""
    async with aiohttp.ClientSession(site.url, timeout=aiohttp.ClientTimeout(60)) as session:
        yield session
