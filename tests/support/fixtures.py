"""Fixtures for tests that look at the whole server from outside; the top conftest.py brings them in."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path

import pytest

from tests.support.memvid import Memvid, memvid
from tests.support.service import Service, service
from tests.support.upstream import Upstream, upstream

StartService = Callable[..., AbstractAsyncContextManager[Service]]


@pytest.fixture
async def model() -> AsyncIterator[Upstream]:
    """An upstream that does as it is told."""
    async with upstream() as running:
        yield running


@pytest.fixture
async def memory() -> AsyncIterator[Memvid]:
    """A memvid service; ``memory.address`` is where it serves."""
    servicer = Memvid()
    async with memvid(servicer) as port:
        servicer.address = f"127.0.0.1:{port}"
        yield servicer


@pytest.fixture
def start(tmp_path: Path, model: Upstream, memory: Memvid) -> StartService:
    """Start the server over ``model`` and ``memory``; keywords are further settings."""
    return partial(
        service,
        tmp_path,
        CHAT_LLM_PROVIDER="local",
        CHAT_LLM_BASE_URL=model.url,
        CHAT_LLM_MODEL="test-model",
        CHAT_MEMVID_GRPC_URL=memory.address,
    )


@pytest.fixture
async def chat_service(start: StartService) -> AsyncIterator[Service]:
    """The server over ``model`` and ``memory``, with the settings at their defaults."""
    async with start() as running:
        yield running
