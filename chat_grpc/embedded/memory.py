"""An open .mv2 file: what can be asked of it, free of any transport.

memvid's core does the searching. Tried on memvid-sdk 2.0.160, which shapes this
module: `ask` returns one passage however many it is asked for, and `find` misses
about a fifth of the passages that hold a word, because it looks only at those
whose sketch (a hash of a few bits) resembles the query's. So a question is put to
memvid in several ways; and since a whole sentence resembles its own passage, each
passage is found once by its own first words when the file is opened, so that what
the sketches pass over is added. relevance.py decides between all that was found.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from chat_grpc.embedded import relevance, sdk
from chat_grpc.embedded.errors import CommandError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

DEPTH = 50
"""How many passages one query to memvid may find, and so the most that a caller can get."""

READ_AHEAD = 2000
"""How many passages are read when a file is opened, at about 0.6 ms each."""

MAX_WORDS = 24
"""How many words of a question are looked for; a long message says the same things again."""

ADAPTIVE_SHARE = 0.5
"""With ``adaptive``, passages below this share of the best score are left out."""

_OPERATORS = frozenset({"and", "or", "not"})
_SYNTAX = re.compile(r"[\"():*\[\]]|\b(?:AND|OR|NOT)\b")


class InvalidQuery(Exception):
    """The query uses memvid's query language, and wrongly."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A passage as the file holds it; ``added_at`` is when it was ingested, in Unix seconds."""

    frame: int
    title: str
    text: str
    tags: tuple[str, ...]
    uri: str
    added_at: int


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage that was found; ``snippet`` is its text, cut to size."""

    title: str
    score: float
    snippet: str
    tags: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """Which passages count; what is empty or None is no condition.

    ``filters`` want a tag that is the value, or that is "key:value", for each
    pair. Times are inclusive, in Unix seconds.
    """

    filters: Mapping[str, str] = field(default_factory=dict)
    uri: str = ""
    added_from: int | None = None
    added_until: int | None = None
    last_frame: int | None = None

    def hold(self, passage: Stored) -> bool:
        """Tell whether a passage counts."""
        tags = {tag.casefold() for tag in passage.tags}
        return (
            all(not tags.isdisjoint((v.casefold(), f"{k}:{v}".casefold())) for k, v in self.filters.items())
            and passage.uri.removeprefix("mv2://").startswith(self.uri.removeprefix("mv2://"))
            and (self.added_from is None or passage.added_at >= self.added_from)
            and (self.added_until is None or passage.added_at <= self.added_until)
            and (self.last_frame is None or passage.frame <= self.last_frame)
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """What a search found, best first, out of how many, and how long its two steps took."""

    hits: tuple[Hit, ...]
    candidates: int
    retrieval_ms: int
    ranking_ms: int


class Memory:
    """An open .mv2 file, read-only. All calls must come from one thread."""

    def __init__(self, path: Path) -> None:
        """Open a file.

        Raises:
            CommandError: it is missing, or is no .mv2 file.
        """
        if not path.is_file():
            raise CommandError(f"there is no memory file {path}; make one with `chat-grpc ingest docs --out {path}`.")
        self._sdk = sdk.load()
        try:
            self._file = self._sdk.use("basic", str(path), read_only=True)
            stats = self._file.stats()
        except (self._sdk.MemvidError, OSError):
            raise CommandError(
                f"{path} is not a memory file that can be read; make one with `chat-grpc ingest docs --out FILE.mv2`."
            ) from None
        self.frame_count: int = stats["frame_count"]
        self._passages: dict[int, Stored] = {}
        self._holding: defaultdict[str, set[int]] = defaultdict(set)  # frames read ahead, by the stems of their words
        # The file does not change while it is open, so neither do its answers.
        self._find = lru_cache(maxsize=8192)(self._find_uncached)
        self._read_ahead()
        self._complete = len(self._passages) >= self.frame_count

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def state(self, entity: str) -> dict[str, str] | None:
        """Return the values of an entity's slots, or None if there is no such entity."""
        state = self._file.state(entity)
        if not state["found"]:
            return None
        return {slot: str(value["value"]) for slot, value in state["slots"].items()}

    def ask(
        self, question: str, *, top_k: int, snippet_chars: int, conditions: Conditions, adaptive: bool = False
    ) -> Answer:
        """Find the passages that cover most of a question; one that shares no word with it is never returned."""
        began = time.perf_counter()
        terms = relevance.content_words(question)[:MAX_WORDS]
        candidates, weights = self._candidates(question, terms)
        found = time.perf_counter()
        hits = self._rank(question, candidates, weights, conditions)
        if adaptive and hits:
            hits = [hit for hit in hits if hit[0] >= ADAPTIVE_SHARE * hits[0][0]]
        return _answer(hits[:top_k], snippet_chars, terms, len(candidates), began, found)

    def search(self, query: str, *, top_k: int, snippet_chars: int, min_relevance: float) -> Answer:
        """Find the passages that hold every word of a query, or that memvid's query language describes.

        Raises:
            InvalidQuery: the query is of that language, and wrong.
        """
        began = time.perf_counter()
        terms = relevance.content_words(query)[:MAX_WORDS]
        candidates, weights = self._candidates(query, terms)
        if _SYNTAX.search(query):
            candidates = self._find_as_written(query)
        else:
            candidates = {frame for frame in candidates if relevance.holds_all(weights, *_texts(self._passages[frame]))}
        found = time.perf_counter()
        hits = self._rank(query, candidates, weights, Conditions())
        hits = [hit for hit in hits if hit[0] >= min_relevance]
        return _answer(hits[:top_k], snippet_chars, terms, len(hits), began, found)

    def _candidates(self, question: str, terms: list[str]) -> tuple[set[int], dict[str, float]]:
        """Return the frames that may fit, and what each word of the question weighs, by stem."""
        candidates: set[int] = set()
        weights: dict[str, float] = {}
        for term in terms:
            stem = relevance.stem(term)
            frames = set(self._holding.get(stem, ()))
            if not self._complete:
                frames |= self._found_by(term, term.removesuffix("s") if term.endswith("s") else f"{term}s")
            weights[stem] = relevance.rarity(len(frames), self.frame_count)
            candidates |= frames
        if terms:
            # The everyday words find nothing by themselves, but a query of more
            # words resembles more passages.
            spoken = [word for word in relevance.words(question) if word not in _OPERATORS][:MAX_WORDS]
            candidates |= self._found_by(*(glue.join(said) for glue in (" ", " OR ") for said in (terms, spoken)))
        return candidates, weights

    def _found_by(self, *queries: str) -> set[int]:
        """Return what memvid finds by plain words."""
        return set().union(*map(self._find, queries))

    def _read_ahead(self) -> None:
        """Have the passages found by their own first words, which the timeline shows."""
        for entry in self._file.timeline(limit=READ_AHEAD):
            words = [word for word in relevance.words(entry["preview"]) if word not in _OPERATORS]
            # The last word may be cut in two.
            self._find_uncached(" ".join(words[:-1] or words))
            if entry["frame_id"] not in self._passages:
                self._find_uncached('"' + " ".join(words[:6]) + '"')
        for frame, passage in self._passages.items():
            for stem in relevance.stems(" ".join((passage.title, passage.text, *passage.tags))):
                self._holding[stem].add(frame)

    def _find_uncached(self, plain: str) -> frozenset[int]:
        # With its mode given, memvid does not look for keys in the environment
        # that would have it ask an embedding service.
        try:
            result = self._file.find(plain, k=DEPTH, mode="lex")
        except self._sdk.MemvidError as error:
            if self._nothing_found(error):
                return frozenset()
            raise
        return self._remember(result["hits"])

    def _find_as_written(self, query: str) -> set[int]:
        try:
            result = self._file.find(query, k=DEPTH, mode="lex")
        except self._sdk.LexIndexDisabledError:
            return set()
        except self._sdk.MemvidError as error:
            if self._nothing_found(error):
                raise InvalidQuery from None
            raise
        return set(self._remember(result["hits"]))

    def _nothing_found(self, error: Exception) -> bool:
        """Tell whether an error only says that memvid has no answer to this query.

        It says "lexical index is not enabled" when the index holds no such
        word, and "invalid query" when its own words (and, or, not) are all
        there is.
        """
        return isinstance(error, self._sdk.LexIndexDisabledError) or "Invalid query" in str(error)

    def _remember(self, hits: Iterable[Mapping[str, Any]]) -> frozenset[int]:
        frames = set()
        for hit in hits:
            frame: int = hit["frame_id"]
            frames.add(frame)
            if frame not in self._passages:
                title = hit["title"] or ""
                added_at = int(datetime.fromisoformat(hit["created_at"]).timestamp())
                text = _without_appendix(hit["text"], title)
                self._passages[frame] = Stored(frame, title, text, tuple(hit["tags"]), hit["uri"], added_at)
        return frozenset(frames)

    def _rank(
        self, question: str, candidates: Iterable[int], weights: Mapping[str, float], conditions: Conditions
    ) -> list[tuple[float, Stored]]:
        passages = (self._passages[frame] for frame in candidates)
        scored = [
            (relevance.score(weights, *_texts(passage)), passage) for passage in passages if conditions.hold(passage)
        ]

        def order(hit: tuple[float, Stored]) -> tuple[float, float, int, int]:
            # Of two that cover the same, and are titled as alike, the shorter says less beside it.
            score, passage = hit
            return -score, -relevance.likeness(question, passage.title), len(passage.text), passage.frame

        return sorted((hit for hit in scored if hit[0] > 0), key=order)


def _texts(passage: Stored) -> tuple[str, str, tuple[str, ...]]:
    return passage.title, passage.text, passage.tags


def _without_appendix(text: str, title: str) -> str:
    """Return a text without what memvid appends to it: title, uri, tags, labels, metadata."""
    head, mark, _ = text.rpartition(f" title: {' '.join(title.split())}")
    return head if mark else text


def _answer(
    hits: list[tuple[float, Stored]], snippet_chars: int, terms: list[str], candidates: int, began: float, found: float
) -> Answer:
    found_hits = tuple(
        Hit(passage.title, score, relevance.snippet(passage.text, terms, snippet_chars), passage.tags)
        for score, passage in hits
    )
    done = time.perf_counter()
    return Answer(found_hits, candidates, round((found - began) * 1000), round((done - found) * 1000))
