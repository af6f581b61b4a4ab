from __future__ import annotations

from pathlib import Path

import pytest

from chat_grpc.embedded import memory as memory_module
from chat_grpc.embedded import relevance
from chat_grpc.embedded.memory import Conditions, Memory


@pytest.mark.parametrize("read_ahead", [1, 2000])
def test_passages_that_cover_a_question_come_first(
    docs_memory: Path, monkeypatch: pytest.MonkeyPatch, read_ahead: int
) -> None:
    monkeypatch.setattr(memory_module, "READ_AHEAD", read_ahead)
    memory = Memory(docs_memory)
    try:
        for question in (
            "How do I delete the history of a user?",
            "How do I keep messages in DynamoDB?",
            "Which ports are used, and how do I change them?",
            "How does the server stop?",
            "kill -9",
        ):
            best, *_ = memory.ask(question, top_k=3, snippet_chars=200, conditions=Conditions()).hits
            assert best.score > 0.9
            assert set(map(relevance.stem, relevance.content_words(question))) <= relevance.stems(
                f"{best.title} {best.snippet}"
            )
    finally:
        memory.close()


def test_every_word_of_every_passage_finds_it(small_memory: Path) -> None:
    # Without reading ahead, memvid's own search misses some of these.
    memory = Memory(small_memory)
    try:
        for word, title in (("ships", "notes"), ("lamps", "notes"), ("bollard", "Guide › How do I moor a ship?")):
            hits = memory.search(word, top_k=10, snippet_chars=100, min_relevance=0).hits
            assert title in {hit.title for hit in hits}
    finally:
        memory.close()


def test_text_is_given_back_without_what_memvid_appends(small_memory: Path) -> None:
    memory = Memory(small_memory)
    try:
        hits = memory.ask("gulls", top_k=10, snippet_chars=1000, conditions=Conditions()).hits
        assert [hit.snippet for hit in hits] == ["Gulls eat bread, fish and sandwiches."]
    finally:
        memory.close()


@pytest.mark.parametrize(
    "forms",
    ["delete deletes deleting deleted", "stop stops stopping stopped", "query queries", "port ports", "move moving"],
)
def test_forms_of_a_word_share_a_stem(forms: str) -> None:
    assert len(set(map(relevance.stem, forms.split()))) == 1


@pytest.mark.parametrize("different", ["port part", "model mode", "user use", "session sense"])
def test_different_words_do_not(different: str) -> None:
    assert len(set(map(relevance.stem, different.split()))) == 2


def test_rare_words_weigh_more() -> None:
    weights = {"fish": relevance.rarity(90, 100), "whal": relevance.rarity(1, 100)}
    assert relevance.score(weights, "", "whale", ()) > 0.7
    assert relevance.score(weights, "", "fish", ()) < 0.1
    assert relevance.score(weights, "whale fish", "", ()) == pytest.approx(1)
    assert relevance.score(weights, "", "", ("whale",)) < relevance.score(weights, "", "whale", ())
    assert relevance.score({}, "whale", "whale", ()) == 0


@pytest.mark.parametrize("chars", [1, 2, 3, 10, 40, 60, 200])
def test_a_snippet_never_exceeds_its_size(chars: int) -> None:
    text = "First comes nothing of note. Then a whale appears. At last all is calm again."
    snippet = relevance.snippet(text, ["whale"], chars)
    assert 0 < len(snippet) <= chars
    if chars == 40:
        assert "whale" in snippet
