"""What an answer leaves behind that was given whole: nothing that only the garbage collector could find."""

from __future__ import annotations

import asyncio
import gc

import pytest

from chat_grpc.conversation.answering import Answering
from tests.support.service import Service
from tests.support.upstream import Upstream, saying


def answers() -> int:
    """Count the answers that are in memory."""
    return sum(isinstance(thing, Answering) for thing in gc.get_objects())


@pytest.mark.parametrize("question", ["Where, {}?", "Where?"], ids=["written", "cached"])
async def test_a_whole_answer_is_gone_at_its_end(chat_service: Service, model: Upstream, question: str) -> None:
    model.answer = saying("Under the old oak.")
    await chat_service.ask("Where?")
    gc.collect()
    gc.disable()
    try:
        for number in range(5):
            await chat_service.ask(question.format(number))
        async with asyncio.timeout(5):
            while answers():  # a client hears of the end a moment before all is put away
                await asyncio.sleep(0.01)
    finally:
        gc.enable()
