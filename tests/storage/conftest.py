"""The storages: each test that asks for ``store`` is run with every one of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from chat_grpc.storage import Storage
from tests.storage.stores import Store, dynamodb_store, sqlite_store
from tests.support.dynamodb import dynamodb_local, moto


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def dynamodb_local_url() -> AsyncIterator[str]:
    """Amazon's DynamoDB Local, in memory."""
    async with dynamodb_local() as url:
        yield url


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def moto_url() -> AsyncIterator[str]:
    """moto's server."""
    async with moto() as url:
        yield url


SERVERS = [pytest.param(kind, marks=pytest.mark.e2e) for kind in ("dynamodb-local", "moto")]


@pytest.fixture(params=SERVERS)
def dynamodb(request: pytest.FixtureRequest) -> Store:
    """A new table, on each server that speaks DynamoDB's protocol."""
    fixture = {"dynamodb-local": "dynamodb_local_url", "moto": "moto_url"}[request.param]
    return dynamodb_store(request.param, request.getfixturevalue(fixture))


@pytest.fixture(params=["sqlite", *SERVERS])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A new place to keep messages, in each kind of storage."""
    if request.param == "sqlite":
        return sqlite_store(tmp_path)
    fixture = {"dynamodb-local": "dynamodb_local_url", "moto": "moto_url"}[request.param]
    return dynamodb_store(request.param, request.getfixturevalue(fixture))


@pytest.fixture
async def storage(store: Store) -> AsyncIterator[Storage]:
    """A new storage of each kind, open."""
    async with store.open() as opened:
        yield opened
