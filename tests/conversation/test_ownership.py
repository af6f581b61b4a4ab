"""Whose messages are whose: with authentication on, everybody reaches what is its own, and administrators all."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from chat_grpc._gen.chat.v1 import chat_pb2, history_pb2
from tests.support.fixtures import StartService
from tests.support.service import Failure, Service, failure_of
from tests.support.tokens import JWT, bearer, token

ADA, BOB = bearer(token("ada")), bearer(token("bob"))
ADMIN = bearer(token("root", "chat:admin"))
OTHER_SCOPES = bearer(token("root", "admin chat:administrator CHAT:ADMIN chat:metrics"))
DENIED = grpc.StatusCode.PERMISSION_DENIED


async def ask(service: Service, metadata: Any, message: str = "How?", **fields: Any) -> str:
    """Send a message and return the id of its session."""
    call = service.chat.Chat(chat_pb2.ChatRequest(message=message, **fields), metadata=metadata)
    events = [event async for event in call]
    return str(events[0].started.session_id)


async def unheard(service: Service, metadata: Any, **fields: Any) -> Failure:
    return await failure_of(service.chat.Chat(chat_pb2.ChatRequest(message="How?", **fields), metadata=metadata))


def reading(service: Service, metadata: Any, **scope: Any) -> Any:
    return service.history.ListMessages(history_pb2.ListMessagesRequest(**scope), metadata=metadata)


def deleting(service: Service, metadata: Any, **scope: Any) -> Any:
    return service.history.DeleteMessages(history_pb2.DeleteMessagesRequest(**scope), metadata=metadata)


async def users(call: Any) -> list[str]:
    return [message.user_id for message in (await call).messages]


async def test_a_message_is_its_senders(start: StartService) -> None:
    async with start(**JWT) as service:
        await ask(service, ADA)
        await ask(service, ADA, user_id="ada")
        assert await users(reading(service, ADA)) == ["ada", "ada"]
        assert await users(reading(service, ADA, user_id="ada")) == ["ada", "ada"]
        assert await users(reading(service, BOB)) == []


@pytest.mark.parametrize("sender", [BOB, ADMIN], ids=["another user", "an administrator"])
async def test_nobody_speaks_for_another(start: StartService, sender: Any) -> None:
    async with start(**JWT) as service:
        failure = await unheard(service, sender, user_id="ada")
        assert (failure.code, failure.reason) == (DENIED, "ANOTHER_USER")
        assert await users(reading(service, ADMIN, user_id="ada")) == []


async def test_a_session_is_its_users(start: StartService) -> None:
    async with start(**JWT) as service:
        session = await ask(service, ADA)
        assert await ask(service, ADA, "And now?", session_id=session) == session
        failures = [
            await unheard(service, BOB, session_id=session),
            await unheard(service, ADMIN, session_id=session),
            await unheard(service, BOB, session_id=session.upper()),
            await failure_of(reading(service, BOB, session_id=session)),
            await failure_of(reading(service, OTHER_SCOPES, session_id=session)),
            await failure_of(deleting(service, BOB, session_id=session)),
            await failure_of(deleting(service, BOB, session_id=session.upper())),
        ]
        assert {(failure.code, failure.reason) for failure in failures} == {(DENIED, "SESSION_OF_ANOTHER_USER")}
        assert await users(reading(service, ADA, session_id=session)) == ["ada", "ada"]
        assert await users(reading(service, ADMIN, session_id=session)) == ["ada", "ada"]


async def test_a_session_stays_its_users_when_it_is_read_from_the_history_again(start: StartService) -> None:
    async with start(**JWT) as service:
        session = await ask(service, ADA)
    async with start(**JWT) as service:
        assert (await unheard(service, BOB, session_id=session)).code is DENIED
        assert await ask(service, ADA, session_id=session) == session


async def test_a_history_is_its_users(start: StartService) -> None:
    async with start(**JWT) as service:
        await ask(service, ADA)
        for metadata in (BOB, OTHER_SCOPES):
            for call in (reading(service, metadata, user_id="ada"), deleting(service, metadata, user_id="ada")):
                failure = await failure_of(call)
                assert (failure.code, failure.reason) == (DENIED, "ANOTHER_USER")
        assert await users(reading(service, ADA)) == ["ada"]
        # Whether there is such a user is not told.
        assert (await failure_of(reading(service, BOB, user_id="nobody"))).reason == "ANOTHER_USER"


async def test_a_page_token_opens_no_other_history(start: StartService) -> None:
    async with start(**JWT) as service:
        for _ in range(2):
            await ask(service, ADA)
        page = await reading(service, ADA, page_size=1)
        assert page.next_page_token
        assert await users(reading(service, ADA, page_size=1, page_token=page.next_page_token)) == ["ada"]
        stolen = await failure_of(reading(service, BOB, page_size=1, page_token=page.next_page_token))
        assert (stolen.code, stolen.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["page_token"])


async def test_everybody_deletes_what_is_its_own_and_administrators_all(start: StartService) -> None:
    async with start(**JWT) as service:
        kept = await ask(service, BOB)
        session = await ask(service, ADA)
        assert (await deleting(service, ADA, session_id=session)).deleted_count == 1
        await ask(service, ADA)
        assert (await deleting(service, ADA, user_id="ada")).deleted_count == 1
        await ask(service, ADA)
        assert (await deleting(service, ADMIN, user_id="ada")).deleted_count == 1
        assert (await deleting(service, ADMIN, session_id=kept)).deleted_count == 1
        assert await users(reading(service, ADMIN, user_id="bob")) == []
        # All that is one's own is a lot to delete by a field that was forgotten.
        assert (await failure_of(deleting(service, ADA))).code is grpc.StatusCode.INVALID_ARGUMENT


async def test_deleting_an_unknown_session_does_nothing(start: StartService) -> None:
    async with start(**JWT) as service:
        session = "7f8f6e54-9d7c-4a3d-9f55-0c1f4f3f6a10"
        assert (await deleting(service, ADA, session_id=session)).deleted_count == 0
        assert await users(reading(service, ADA, session_id=session)) == []


async def test_what_was_said_before_authentication_is_nobodys_but_an_administrators(start: StartService) -> None:
    async with start() as service:
        session = await ask(service, ())
    async with start(**JWT) as service:
        assert (await failure_of(reading(service, ADA, session_id=session))).code is DENIED
        assert (await unheard(service, ADA, session_id=session)).code is DENIED
        assert await users(reading(service, ADMIN, session_id=session)) == [""]


async def test_a_request_id_of_another_users_gives_no_answer_away(start: StartService) -> None:
    async with start(**JWT) as service:
        await ask(service, ADA, "What is my secret?", request_id="same")
        assert await ask(service, BOB, "Something else", request_id="same")
        assert await users(reading(service, BOB)) == ["bob"]


async def test_one_users_limit_is_not_anothers(start: StartService) -> None:
    async with start(**JWT, CHAT_RATE_LIMIT="1/hour") as service:
        await ask(service, ADA)
        assert (await unheard(service, ADA)).code is grpc.StatusCode.RESOURCE_EXHAUSTED
        await ask(service, BOB)
