"""The provider that needs no model: it quotes what the passages say.

It is the default where no key is set, so that a newcomer has answers at once;
each answer says that it is extractive.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections import Counter
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass

from chat_grpc.domain import FinishReason, Passage, Usage
from chat_grpc.llm import Ending, Prompt, Sink
from chat_grpc.llm.tokens import estimate

MODEL = "quotes"
MAX_QUOTES = 4
MIN_COVERAGE = 0.34
"""The share of the question's weight that quotes must hold together to count as an answer."""
INTRODUCTION = "No language model is set up, so here is what the documents say (extractive answer):\n"
NOTHING = (
    "I found nothing in the documents that answers this. No language model is set up, so I can only quote "
    "them (extractive answer); asking in other words may help."
)
PAUSE_SECONDS = 0.002
"""Between two quotes, so that each is on its way before the next one."""
UNREACHABLE = (
    "The documents can't be searched right now, and no language model is set up, so there is nothing I can quote "
    "(extractive answer); please ask again in a moment."
)
IS_SET_UP = "language model is set up"
CAN_BE_REACHED = "language model can be reached right now"

MIN_STEM = 3

_WORD = re.compile(r"[^\W_]+(?:[._'-][^\W_]+)*")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[^\s])|\n{2,}")
_STOP_WORDS = frozenset(
    [
        "a",
        "about",
        "all",
        "also",
        "am",
        "an",
        "and",
        "any",
        "are",
        "as",
        "at",
        "be",
        "been",
        "but",
        "by",
        "can",
        "could",
        "did",
        "do",
        "does",
        "done",
        "for",
        "from",
        "get",
        "had",
        "has",
        "have",
        "how",
        "i",
        "if",
        "in",
        "into",
        "is",
        "it",
        "its",
        "just",
        "let",
        "may",
        "me",
        "might",
        "more",
        "my",
        "no",
        "not",
        "of",
        "on",
        "one",
        "only",
        "or",
        "our",
        "out",
        "over",
        "please",
        "should",
        "so",
        "some",
        "such",
        "tell",
        "than",
        "that",
        "the",
        "their",
        "them",
        "then",
        "there",
        "these",
        "they",
        "this",
        "those",
        "to",
        "up",
        "us",
        "use",
        "was",
        "we",
        "were",
        "what",
        "when",
        "where",
        "which",
        "who",
        "why",
        "will",
        "with",
        "without",
        "would",
        "you",
        "your",
    ]
)


class Extractive:
    """Quotes the sentences of the passages that fit the question best, with their titles.

    Args:
        standing_in: whether it answers because others failed, and so says that instead.
    """

    name = "extractive"
    default_model = MODEL
    models = frozenset({MODEL})

    def __init__(self, *, standing_in: bool = False) -> None:
        self._standing_in = standing_in

    async def stream(self, prompt: Prompt) -> AsyncGenerator[str | Ending, Sink | None]:
        """Yield the answer quote by quote, then its Ending."""
        await prompt.may_be_sent()
        pieces = [UNREACHABLE] if prompt.passages is None else list(answer(prompt.question, prompt.passages))
        if self._standing_in:
            pieces[0] = pieces[0].replace(IS_SET_UP, CAN_BE_REACHED)
        for piece in pieces:
            yield piece
            await asyncio.sleep(PAUSE_SECONDS)
        tokens = estimate("".join(pieces))
        yield Ending(FinishReason.STOP, Usage(0, tokens, tokens, 0.0, estimated=True))

    async def open(self) -> None:
        """Do nothing: there is nothing to open."""

    async def ping(self) -> None:
        """Do nothing: there is nothing to reach."""

    async def close(self) -> None:
        """Do nothing: there is nothing to close."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    rank: tuple[int, int]  # of the passage, and within it: the order of quotes in the answer
    title: str
    sentence: str
    words: frozenset[str]


def answer(question: str, passages: Iterable[Passage]) -> Iterable[str]:
    """Yield the pieces of an answer.

    Sentences are chosen greedily: each next one holds most of the weight of
    the question's words that no earlier one held. Rare words weigh more.
    """
    candidates = list(_candidates(passages))
    asked = _stems(question)
    weights = _weights(asked, candidates)
    total = sum(weights.values())
    open_words = set(weights)
    chosen: list[_Candidate] = []
    while candidates and len(chosen) < MAX_QUOTES:
        best = max(candidates, key=lambda item: (_weight(item, open_words, weights), (-item.rank[0], -item.rank[1])))
        if not _weight(best, open_words, weights):
            break
        chosen.append(best)
        open_words -= best.words
        candidates.remove(best)
    covered = total - sum(weights[word] for word in open_words)
    if not total or covered / total < MIN_COVERAGE:
        yield NOTHING
        return
    yield INTRODUCTION
    for item in sorted(chosen, key=lambda item: item.rank):
        yield f"\n- {item.sentence} ({item.title})"


def _candidates(passages: Iterable[Passage]) -> Iterable[_Candidate]:
    for place, passage in enumerate(passages):
        # A title says what all the sentences below it are about.
        about = _stems(passage.title) | {stem for tag in passage.tags for stem in _stems(tag)}
        for index, sentence in enumerate(_SENTENCE_END.split(passage.snippet)):
            text = " ".join(sentence.split())
            if len(text) > 1 and (stems := _stems(text)):
                yield _Candidate((place, index), passage.title, text, frozenset(stems | about))


def _stems(text: str) -> set[str]:
    """Return the words that carry meaning, without the endings that grammar gives them."""
    found = set()
    for word in _WORD.findall(text.lower()):
        if word in _STOP_WORDS:
            continue
        found.add(_stem(word))
        for part in re.split(r"[._'-]", word):
            if part not in _STOP_WORDS:
                found.add(_stem(part))
    return found - {""}


def _stem(word: str) -> str:
    for ending in ("ing", "ies", "es", "ed", "s", "e"):
        if word.endswith(ending) and len(word) - len(ending) >= MIN_STEM:
            return word[: -len(ending)]
    return word


def _weights(asked: set[str], candidates: list[_Candidate]) -> dict[str, float]:
    """Weigh each word asked for by how rare it is; a word in no sentence weighs most."""
    counts = Counter(word for item in candidates for word in item.words & asked)
    size = len(candidates) or 1
    return {word: math.log(1 + size / (counts[word] + 0.5)) for word in asked}


def _weight(item: _Candidate, open_words: set[str], weights: dict[str, float]) -> float:
    return sum(weights[word] for word in item.words & open_words)
