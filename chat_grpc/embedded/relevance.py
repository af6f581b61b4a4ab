"""How well a passage fits a question, as a number from 0 to 1.

memvid's own scores can't be shown: those of `find` are BM25, without an upper
end, and those of `ask` are sums of reciprocal ranks, which hardly differ
between a good passage and a bad one. The score here is the share of the
question that a passage covers: each word weighs as much as it is rare (its
inverse document frequency), and counts in full where it stands in the title,
a little less in the text, half where only a tag has it. A passage that holds
every word is near 1, one that shares a common word with the question near 0,
and words that no passage holds lower all scores.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

IN_TITLE = 1.0
IN_TEXT = 0.85
IN_TAGS = 0.5

_SENTENCE_END = re.compile(r"[.!?]\s+")
_WORD = re.compile(r"[^\W_]+")
# Words of questions that say nothing of what is asked about.
_EMPTY = frozenset(
    """
    a about all also am an and any are aren as at be been being but by can could couldn d did didn do does doesn doing
    don done for from get gets give given go goes had happen happens has have he her here him his how i if in into is
    isn it its just let like ll m make makes may me mean means might must my need needs no not of off on one only or our
    out over please re s shall she should shouldn so some such t tell than that the their them then there these they
    this those through to too up us use used uses using ve very want was wasn we were weren what when where whether which
    while who whom whose why will with within without won would wouldn you your
    """.split()  # noqa: SIM905 (a list would take a line a word)
)


def words(text: str) -> list[str]:
    """Return the words of a text in lower case, in its order; a name such as CHAT_X is two."""
    return _WORD.findall(text.lower())


def content_words(question: str) -> list[str]:
    """Return the words that say what a question is about, each once.

    A question of nothing but everyday words, such as "What can you do?", keeps them.
    """
    each = list(dict.fromkeys(words(question)))
    return [word for word in each if word not in _EMPTY] or each


def stem(word: str) -> str:
    """Return the part that the forms of an English word share: delete, deletes, deleting."""
    for suffix in ("ations", "ation", "ings", "ing", "ies", "ied", "ers", "ed", "er", "es", "s", "e", "y"):
        if word.endswith(suffix) and len(word) - len(suffix) >= 3:  # noqa: PLR2004 (shorter stems collide)
            word = word[: -len(suffix)]
            break
    # "stopped" and "stop"
    return word[:-1] if len(word) > 3 and word[-1] == word[-2] else word  # noqa: PLR2004 (the same bound)


def rarity(holding: int, total: int) -> float:
    """Return the weight of a word that ``holding`` of ``total`` passages hold: 0 if all do."""
    return math.log((total + 1) / (min(holding, total) + 0.5))


def score(weights: Mapping[str, float], title: str, text: str, tags: Iterable[str]) -> float:
    """Return the share of a question that a passage covers, 0 to 1; ``weights`` are by stem."""
    whole = sum(weights.values())
    if whole <= 0:
        return 0.0
    in_title, in_text = stems(title), stems(text)
    in_tags = stems(" ".join(tags))
    covered = sum(
        weight * (IN_TITLE if word in in_title else IN_TEXT if word in in_text else IN_TAGS if word in in_tags else 0.0)
        for word, weight in weights.items()
    )
    return covered / whole


def likeness(question: str, title: str) -> float:
    """Return how alike a question and a title are, everyday words too, 0 to 1: what decides between equal scores."""
    asked, named = stems(question), stems(title)
    return 2 * len(asked & named) / (len(asked) + len(named)) if asked or named else 0.0


def holds_all(weights: Mapping[str, float], title: str, text: str, tags: Iterable[str]) -> bool:
    """Tell whether a passage holds every word, in any form; ``weights`` are by stem."""
    return weights.keys() <= stems(" ".join((title, text, *tags)))


def snippet(text: str, terms: Iterable[str], chars: int) -> str:
    """Return at most ``chars`` characters of a text, from the sentence on that holds most of the words.

    "…" stands where something was left out.
    """
    if len(text) <= chars:
        return text
    wanted = set(map(stem, terms))
    starts = [0, *(match.end() for match in _SENTENCE_END.finditer(text))]
    # Two characters are for the marks of what is left out.
    start = max(starts, key=lambda at: (len(wanted & stems(text[at : at + max(chars - 2, 0)])), -at))
    lead = "…" if start else ""
    rest = text[start:]
    if len(lead) + len(rest) <= chars:
        return lead + rest
    room = chars - len(lead) - 1
    if room <= 0:
        return text[:chars]
    cut = rest[:room]
    if not rest[room].isspace():
        cut = cut.rpartition(" ")[0] or cut
    return f"{lead}{cut.rstrip()}…"


@lru_cache(maxsize=65536)
def stems(text: str) -> frozenset[str]:
    """Return the stems of a text's words; the texts are passages, which come again and again."""
    return frozenset(map(stem, words(text)))
