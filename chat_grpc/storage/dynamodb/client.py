"""The one connection to DynamoDB, and what its faults mean."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any

from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    HTTPClientError,
    NoCredentialsError,
    NoRegionError,
    ReadTimeoutError,
)
from botocore.exceptions import ConnectionError as NoConnectionError

from chat_grpc.errors import StorageUnavailable
from chat_grpc.storage.dynamodb.address import Address
from chat_grpc.telemetry import logs

log = logs.get(__name__)

ATTEMPTS = 3
"""How often a call is made at most, between which there are at most one, then two seconds."""
CONNECT_SECONDS = 1.0
READ_SECONDS = 2.0
CONNECTIONS = 100
"""How many calls go on at once; further ones wait for one of these."""

LOCAL_REGION = "us-east-1"
"""DynamoDB Local asks for a region, and does not care which."""

FAULTS = (BotoCoreError, ClientError, OSError, TimeoutError)
"""All that can go wrong between here and the table."""

Client = Any
"""aiobotocore makes the class when a client is made; there is none to name."""

CAUSES = {
    "ProvisionedThroughputExceededException": "it is asked too often",
    "ThrottlingException": "it is asked too often",
    "Throttling": "it is asked too often",
    "RequestLimitExceeded": "it is asked too often",
    "TransactionConflictException": "others write the same items",
    "TransactionCanceledException": "others write the same items, or it is asked too often",
    "ResourceNotFoundException": "the table does not exist",
    "AccessDeniedException": "the credentials do not allow it",
    "UnrecognizedClientException": "the credentials are not known there",
    "InvalidSignatureException": "the credentials are not right, or this machine's clock is wrong",
    "ExpiredTokenException": "the credentials have expired",
    "InternalServerError": "it failed",
    "ValidationException": "it takes the request for a wrong one",
}


def connect(address: Address) -> AbstractAsyncContextManager[Client]:
    """Return what opens a client, and closes it in the end.

    Credentials and, where the address names none, the region come from where
    Amazon's own tools look for them. An endpoint on this machine needs none.
    """
    own: dict[str, str] = {}
    if address.is_local and "AWS_ACCESS_KEY_ID" not in os.environ:
        own = {"aws_access_key_id": "local", "aws_secret_access_key": "local"}
    opening: AbstractAsyncContextManager[Client] = get_session().create_client(
        "dynamodb",
        region_name=address.region or (LOCAL_REGION if address.is_local else None),
        endpoint_url=address.endpoint_url or None,
        config=AioConfig(
            connect_timeout=CONNECT_SECONDS,
            read_timeout=READ_SECONDS,
            max_pool_connections=CONNECTIONS,
            # The mode that gives up on its own when an outage lasts.
            retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
            # Everything that is sent is made here, of values that were checked.
            parameter_validation=False,
            tcp_keepalive=True,
        ),
        **own,
    )
    return opening


@contextmanager
def guard(doing: str) -> Iterator[None]:
    """Turn every fault of DynamoDB, and of the way there, into StorageUnavailable."""
    try:
        yield
    except FAULTS as error:
        cause = cause_of(error)
        log.warning("storage failed", doing=doing, cause=cause)
        raise StorageUnavailable(f"the database can't {doing} now ({cause})", metadata={"store": "dynamodb"}) from error


@contextmanager
def suppress_condition() -> Iterator[None]:
    """Go on after the block if the condition of a write in it was not met."""
    try:
        yield
    except ClientError as error:
        if not condition_failed(error):
            raise


def condition_failed(error: Exception) -> bool:
    """Tell whether it was the condition of a write that was not met."""
    return code_of(error) == "ConditionalCheckFailedException"


def code_of(error: Exception) -> str:
    """Return DynamoDB's name of a fault, "" if it is none of its own."""
    return str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, ClientError) else ""


def cause_of(error: Exception) -> str:
    """Say in words what was reported, without quoting it."""
    if isinstance(error, ConnectTimeoutError | ReadTimeoutError | TimeoutError):
        return "it did not answer in time"
    if isinstance(error, NoCredentialsError):
        return "there are no credentials for it"
    if isinstance(error, NoRegionError):
        return "no region is named"
    if isinstance(error, NoConnectionError | HTTPClientError | OSError):
        return "it can't be reached, or broke the connection"
    return CAUSES.get(code_of(error), code_of(error) or "the client refused")
