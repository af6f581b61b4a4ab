"""Reading a text as a model may: through disguises that keep people, and plain patterns, from seeing what it says."""

from __future__ import annotations

import re
import unicodedata
from functools import cached_property

from chat_grpc.conversation.guardrails.decoding import decoded

QUOTE = '"'
STOP = "."
CLAUSE = ":"
"""The tokens that stand for every kind of quotation mark, for the ends of sentences, and for lesser breaks."""

INVISIBLE = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    "\u3164\ufe00-\ufe0f\ufeff\uffa0\U000e0000-\U000e0fff"
)
"""Characters that show nothing, as the inside of a regular expression's class."""

_INVISIBLE = re.compile(f"[{INVISIBLE}]")
_MARKS = re.compile("[\u0300-\u036f]")
_EMPHASIS = re.compile(r"[*~`]|(?<!\w)_+|_+(?!\w)")
_TOKEN = re.compile(
    r"\w+(?:['\u2019]\w+)*"  # a word, with its apostrophes
    r"|[.!?;\u2026\u3002\uff01\uff1f]|[:\n]"
    r"|[\"'\u2018-\u201f\u00ab\u00bb\u2039\u203a\u300c-\u300f]"
)
_KINDS = dict.fromkeys(".!?;\u2026\u3002\uff01\uff1f", STOP) | dict.fromkeys(":\n", CLAUSE)
_QUOTES = frozenset("\"'\u00ab\u00bb\u2039\u203a") | {
    chr(code) for code in (*range(0x2018, 0x2020), *range(0x300C, 0x3010))
}

# Letters of other alphabets that look like Latin ones. They are read so in words that hold Latin letters too: a word
# that is all Russian or Greek stays what it is.
_LOOKALIKE = str.maketrans(
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0458\u0455\u0501\u04bb\u043a\u043c\u0442\u0432\u043d\u03b1\u03bf\u03b5\u03bd\u03c1\u03c4\u03b9\u03ba\u03c5\u03c7\u03b7",
    "aeopcyxijsdhkmtbhaoevptikuxn",
)
_LOOKALIKES = re.compile("[\u0370-\u03ff\u0400-\u052f]")
_SMALL_CAPITALS = str.maketrans(
    "\u1d00\u0299\u1d04\u1d05\u1d07\ua730\u0262\u029c\u026a\u1d0a\u1d0b\u029f\u1d0d\u0274\u1d0f\u1d18\u0280\ua731\u1d1b\u1d1c\u1d20\u1d21\u028f\u1d22\u0131",
    "abcdefghijklmnoprstuvwyzi",
)
_LATIN = re.compile("[a-z]")
_WORD = re.compile(r"\w+")

_LEET = str.maketrans("0134578@$", "oieastbas")
_LEET_WORD = re.compile(r"[a-z][0134578@$]|[0134578@$][a-z]")
# Six letters or more, each alone; possessive, so that no part is read twice.
_SPACED = re.compile(r"(?<!\w)(?:\w[ .\-_|/\t]{1,3}+(?!\w\w)){5,}+\w?")
_GAP = re.compile(r"[ \t]{2,}|[|/]|\.{2,}|-{2,}")


def normalise(text: str) -> str:
    """Return a text in one form: no case, marks, emphasis or invisible characters, and lookalikes as what they imitate."""
    if not text.isascii():
        text = unicodedata.normalize("NFKD", _INVISIBLE.sub("", text)).translate(_SMALL_CAPITALS)
        text = _MARKS.sub("", text)
    text = _EMPHASIS.sub("", text.casefold())
    if _LOOKALIKES.search(text) and _LATIN.search(text):
        text = _WORD.sub(_as_latin, text)
    return text


def _as_latin(word: re.Match[str]) -> str:
    return word[0].translate(_LOOKALIKE) if _LATIN.search(word[0]) else word[0]


class Reading:
    """One way to read a text.

    Attributes:
        text: in its one form.
        tokens: its words, and QUOTE, STOP and CLAUSE between them.
    """

    __slots__ = ("text", "tokens")

    def __init__(self, text: str) -> None:
        self.text = text
        tokens: list[str] = _TOKEN.findall(text)
        self.tokens = [_KINDS.get(token) or (QUOTE if token in _QUOTES else token) for token in tokens]


class Readings:
    """A message, and the ways to read it; each is made when it is first asked for."""

    def __init__(self, raw: str) -> None:
        self.raw = raw

    @cached_property
    def plain(self) -> tuple[Reading, ...]:
        """What a person can read: the text itself, also with digits as letters, and with its spaced letters joined."""
        text = normalise(self.raw)
        readings = [Reading(text)]
        if _LEET_WORD.search(text):
            readings.append(Reading(text.translate(_LEET)))
        if spaced := _SPACED.findall(text):
            readings.extend(Reading(_joined(letters)) for letters in spaced)
        return tuple(readings)

    @cached_property
    def decoded(self) -> tuple[Reading, ...]:
        """What its encoded parts say, once each."""
        return tuple(Reading(normalise(text)) for text in decoded(self.raw))


def _joined(letters: str) -> str:
    words = ["".join(filter(str.isalnum, word)) for word in _GAP.split(letters)]
    # Without wider gaps between words they stand as one, which a pattern of its own finds.
    return " ".join(words)
