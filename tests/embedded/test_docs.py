"""The documentation answers its own questions, through the real server over the real corpus."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest

from chat_grpc._gen.memvid.v1 import memvid_pb2, memvid_pb2_grpc
from chat_grpc.embedded import documents, passages, profile

DOCS = Path(__file__).resolve().parents[2] / "docs"
SUGGESTED = profile.read(DOCS / "profile.yaml")["suggested_questions"]
TITLES = [
    piece.title
    for address, file in documents.find([DOCS]).files.items()
    for piece in passages.split(documents.read(file, address))
]

ASKED = {
    "Where are my messages stored?": "Storage › Where are messages stored by default?",
    "What is memvid?": "Retrieval and memory › What is memvid?",
    "how do I use ollama": "Models › How do I use OpenAI, vLLM or Ollama?",
    "redis cache": "Cache and idempotency › What is kept in Redis?",
    "what is CHAT_DRAIN_SECONDS": "Operations › How does the server stop?",
    "add pdf files": "Retrieval and memory › How do I add my own documents?",
}


def _ask(address: str, question: str) -> list[memvid_pb2.SearchHit]:
    with grpc.insecure_channel(address) as channel:
        blocking: Any = channel  # the generated types know asyncio's channels only
        stub: Any = memvid_pb2_grpc.MemvidServiceStub(blocking)
        return list(stub.Ask(memvid_pb2.AskRequest(question=question)).evidence)


@pytest.mark.parametrize("question", SUGGESTED)
def test_every_suggested_question_finds_its_own_section(docs_process: str, question: str) -> None:
    best, *_ = _ask(docs_process, question)
    assert best.title.endswith(f" › {question}")
    assert best.score > 0.9


def test_every_heading_finds_its_own_section(docs_process: str) -> None:
    questions = {title.rpartition(" › ")[2]: title for title in TITLES if " › " in title}
    found = {question: next((hit.title for hit in _ask(docs_process, question)), "") for question in questions}
    assert found == questions


@pytest.mark.parametrize("question", ASKED)
def test_questions_in_other_words_find_the_right_section(docs_process: str, question: str) -> None:
    assert _ask(docs_process, question)[0].title == ASKED[question]


@pytest.mark.parametrize("question", ["What is the capital of France?", "Best pizza recipe in Naples?", "hello"])
def test_good_and_bad_hits_lie_far_apart(docs_process: str, question: str) -> None:
    assert all(hit.score < 0.3 for hit in _ask(docs_process, question))


def test_what_is_said_of_dynamodb_is_true(docs_process: str) -> None:
    best = _ask(docs_process, "How do I keep messages in DynamoDB?")[0]
    assert best.snippet.startswith("Install the packages for it")
    assert "CHAT_DATABASE_URL" in best.snippet
