"""The memory's own system prompt is asked for once a minute, and no message waits for it but the first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping

import pytest

from chat_grpc.conversation.system_prompt import BUILT_IN, FRESH_SECONDS, RETRY_SECONDS, SystemPrompt
from chat_grpc.domain import Passage
from chat_grpc.errors import RetrievalUnavailable
from chat_grpc.retrieval import MemoryState, Profile


class Memory:
    """A memory whose profile a test writes, and that can be down or slow."""

    def __init__(self) -> None:
        self.system_prompt = "one"
        self.down = False
        self.open = asyncio.Event()
        self.open.set()
        self.asked = 0

    async def ask(self, question: str, *, top_k: int, filters: Mapping[str, str]) -> tuple[Passage, ...]:
        return ()

    async def profile(self) -> Profile | None:
        self.asked += 1
        await self.open.wait()
        if self.down:
            raise RetrievalUnavailable("down")
        return Profile("n", "t", (), self.system_prompt)

    async def state(self) -> MemoryState:
        return MemoryState(serving=True, frame_count=0, file="")


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def memory() -> Memory:
    return Memory()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def make(memory: Memory, clock: Clock) -> AsyncIterator[Callable[[str], SystemPrompt]]:
    made: list[SystemPrompt] = []

    def new(configured: str) -> SystemPrompt:
        made.append(SystemPrompt(configured, memory, clock=clock))
        return made[-1]

    yield new
    for prompt in made:
        await prompt.close()


Make = Callable[[str], SystemPrompt]


async def settled(prompt: SystemPrompt) -> str:
    """Return the text after the background has had its turn."""
    for _ in range(5):
        await asyncio.sleep(0)
    return await prompt.text()


async def test_with_a_text_in_the_settings_the_memory_is_never_asked(make: Make, memory: Memory) -> None:
    assert await make("mine").text() == "mine"
    assert memory.asked == 0


async def test_the_memory_is_asked_once_a_minute(make: Make, memory: Memory, clock: Clock) -> None:
    prompt = make("")
    assert await asyncio.gather(*(prompt.text() for _ in range(9))) == ["one"] * 9
    memory.system_prompt = "two"
    clock.now += FRESH_SECONDS - 1
    assert await settled(prompt) == "one"
    assert memory.asked == 1
    clock.now += 1
    assert await prompt.text() == "one"
    assert await settled(prompt) == "two"
    assert memory.asked == 2


async def test_nobody_waits_for_a_refresh(make: Make, memory: Memory, clock: Clock) -> None:
    prompt = make("")
    await prompt.text()
    memory.open.clear()
    memory.system_prompt = "two"
    clock.now += FRESH_SECONDS
    for _ in range(3):
        assert await asyncio.wait_for(prompt.text(), 10) == "one"
        await asyncio.sleep(0)
    assert memory.asked == 2
    memory.open.set()
    assert await settled(prompt) == "two"


async def test_a_memory_that_is_down_leaves_the_last_text(make: Make, memory: Memory, clock: Clock) -> None:
    prompt = make("")
    await prompt.text()
    memory.down = True
    clock.now += FRESH_SECONDS
    await prompt.text()
    assert await settled(prompt) == "one"
    memory.down = False
    memory.system_prompt = "two"
    clock.now += RETRY_SECONDS
    await prompt.text()
    assert await settled(prompt) == "two"


async def test_a_memory_that_was_never_there_is_waited_for_once(make: Make, memory: Memory, clock: Clock) -> None:
    memory.down = True
    prompt = make("")
    assert await prompt.text() == BUILT_IN
    memory.open.clear()
    memory.down = False
    clock.now += RETRY_SECONDS
    assert await asyncio.wait_for(prompt.text(), 10) == BUILT_IN
    memory.open.set()
    assert await settled(prompt) == "one"


async def test_one_who_leaves_takes_nothing_from_the_others(make: Make, memory: Memory) -> None:
    memory.open.clear()
    prompt = make("")
    leaving, waiting = (asyncio.ensure_future(prompt.text()) for _ in range(2))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.sleep(0)
    memory.open.set()
    assert await waiting == "one"
    assert leaving.cancelled()
    assert memory.asked == 1


async def test_closing_ends_a_question_that_goes_on(make: Make, memory: Memory) -> None:
    memory.open.clear()
    prompt = make("")
    waiting = asyncio.ensure_future(prompt.text())
    await asyncio.sleep(0)
    await asyncio.wait_for(prompt.close(), 10)
    with pytest.raises(asyncio.CancelledError):
        await waiting
