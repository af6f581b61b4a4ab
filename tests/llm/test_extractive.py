"""What the extractive provider quotes."""

from __future__ import annotations

from chat_grpc.domain import FinishReason, Passage
from chat_grpc.llm import Ending, Prompt
from chat_grpc.llm.extractive import INTRODUCTION, NOTHING, UNREACHABLE, Extractive
from tests.support.fixtures import StartService
from tests.support.service import text_of

DYNAMO = Passage(
    "Storage › DynamoDB", 0.9, "Messages live in tables. To keep messages in DynamoDB, set CHAT_DATABASE_URL. Enjoy!"
)
SQLITE = Passage("Storage › SQLite", 0.5, "SQLite is the default.\n\nIt needs no server.")


async def quotes(question: str, passages: tuple[Passage, ...] | None) -> tuple[list[str], Ending]:
    prompt = Prompt(turns=(), question=question, passages=passages, model="quotes")
    *pieces, ending = [piece async for piece in Extractive().stream(prompt)]
    assert isinstance(ending, Ending)
    return [str(piece) for piece in pieces], ending


async def test_quotes_the_best_sentence_with_its_title() -> None:
    pieces, ending = await quotes("How do I keep messages in DynamoDB?", (SQLITE, DYNAMO))
    assert pieces[0] == INTRODUCTION
    assert pieces[1] == "\n- To keep messages in DynamoDB, set CHAT_DATABASE_URL. (Storage › DynamoDB)"
    assert ending.finish_reason is FinishReason.STOP
    assert ending.usage is not None
    assert ending.usage.cost_usd == 0
    assert ending.usage.completion_tokens > 0


async def test_quotes_stand_in_the_order_of_the_passages() -> None:
    pieces, _ = await quotes("Does SQLite need a server, and how do messages get to DynamoDB?", (SQLITE, DYNAMO))
    titles = [piece.rpartition("(")[2].rstrip(")") for piece in pieces[1:]]
    assert titles == sorted(titles, key=[SQLITE.title, DYNAMO.title].index)
    assert set(titles) == {SQLITE.title, DYNAMO.title}


async def test_says_plainly_when_nothing_fits() -> None:
    assert (await quotes("What is the capital of Mongolia?", (SQLITE, DYNAMO)))[0] == [NOTHING]
    assert (await quotes("How do I keep messages?", ()))[0] == [NOTHING]
    assert (await quotes("and the of?", (SQLITE,)))[0] == [NOTHING]


async def test_says_when_the_memory_was_out_of_reach() -> None:
    assert (await quotes("How do I keep messages?", None))[0] == [UNREACHABLE]


async def test_quotes_are_streamed(start: StartService) -> None:
    async with start(CHAT_LLM_PROVIDER="extractive") as service:
        events = await service.ask("Does SQLite keep messages in one file, or is that DynamoDB?")
    assert text_of(events).startswith(INTRODUCTION)
    assert sum(event.HasField("delta") for event in events) > 1
