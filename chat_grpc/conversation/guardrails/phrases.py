"""Phrases: words of certain kinds that follow each other with little between them.

They are looked for in lists of words, not by regular expressions: each word is
looked at by a few words before it and no more, so no text can make it slow.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from chat_grpc.conversation.guardrails.text import CLAUSE, QUOTE, STOP, Reading, normalise

LOOK_BACK = 10
"""Words before a phrase in which its subject is looked for."""


def words(text: str) -> frozenset[str]:
    """Return the words of a text, in the form in which messages are read."""
    return frozenset(normalise(text).split())


@dataclass(frozen=True, slots=True)
class Phrase:
    """Kinds of words in their order.

    Attributes:
        first: the words that it may begin with.
        then: for each further place how many other words may stand before it, and the words that fit.
        unless_next: words that make it innocent when they follow it directly.
    """

    first: frozenset[str]
    then: tuple[tuple[int, frozenset[str]], ...]
    unless_next: frozenset[str] = frozenset()

    @property
    def telling(self) -> frozenset[str]:
        """The words of the place for which the fewest everyday words fit."""
        return min((self.first, *(kind for _, kind in self.then)), key=lambda kind: (len(kind & EVERYDAY), len(kind)))


EVERYDAY = words(
    "a act add all and answer any are ask be can code copy data describe do does every everything file for free from"
    " get give god have how if in is it key keys list make me message mode model my name no not now of on or output"
    " print provide quote read return say set setting show sie state stop tell text that the this to token translate tu"
    " un use user was we what what's when where which who why will with words write you your"
)
"""Words of innocent questions: a message is not looked at closely for one of them alone, where that can be helped."""


class Telling:
    """Words, found also where their inner letters are in another order.

    Args:
        phrases: whose telling words are looked for.
        more: further words.
    """

    def __init__(self, phrases: Iterable[Phrases], more: frozenset[str]) -> None:
        self._words = more.union(*(item.telling for item in phrases))
        long = [word for word in self._words if len(word) >= SCRAMBLED_LENGTH]
        self._ends = {(word[0], word[-1], len(word)) for word in long}
        self._shapes = {_shape(word) for word in long}

    def is_in(self, words: Sequence[str]) -> bool:
        """Tell whether one of them may stand there."""
        if not self._words.isdisjoint(words):
            return True
        for word in words:  # no generator: every message comes here
            size = len(word)
            if size >= SCRAMBLED_LENGTH and (word[0], word[-1], size) in self._ends and _shape(word) in self._shapes:
                return True
        return False


def phrase(first: str, *then: int | str, unless_next: str = "") -> Phrase:
    """Return a phrase: words, the most words between, words, the most words between, words, ..."""
    gaps, kinds = then[::2], then[1::2]
    places = tuple((int(gap), words(str(kind))) for gap, kind in zip(gaps, kinds, strict=True))
    return Phrase(words(first), places, words(unless_next))


class Phrases:
    """Phrases that are looked for together."""

    def __init__(self, phrases: Iterable[Phrase]) -> None:
        self._by_first: dict[str, list[Phrase]] = {}
        for item in phrases:
            for word in item.first:
                self._by_first.setdefault(word, []).append(item)
        known = {
            word for item in self._all() for kind in (item.first, *(kind for _, kind in item.then)) for word in kind
        }
        self._scrambled = {_shape(word): word for word in sorted(known) if len(word) >= SCRAMBLED_LENGTH}
        self._ends = {(word[0], word[-1], len(word)) for word in self._scrambled.values()}

    @property
    def telling(self) -> frozenset[str]:
        """Words of which one at least stands in everything that holds one of the phrases, but for words in disguise."""
        return frozenset(word for item in self._all() for word in item.telling)

    def _all(self) -> Iterator[Phrase]:
        for items in self._by_first.values():
            yield from items

    def found_in(self, reading: Reading) -> bool:
        """Tell whether one of them is said, rather than spoken about."""
        tokens = reading.tokens
        return self._search(tokens) or self._search(self._unscrambled(tokens))

    def _search(self, tokens: list[str] | None) -> bool:
        if tokens is None or self._by_first.keys().isdisjoint(tokens):
            return False
        for start, word in enumerate(tokens):
            for item in self._by_first.get(word, ()):
                end = _end_of(item, tokens, start)
                if end and not _is_mentioned(tokens, start, end):
                    return True
        return False

    def _unscrambled(self, tokens: list[str]) -> list[str] | None:
        """Return the words with those set right whose inner letters are in another order; None if there are none."""
        ends, changed = self._ends, False
        result = list(tokens)
        for place, word in enumerate(tokens):
            if len(word) >= SCRAMBLED_LENGTH and (word[0], word[-1], len(word)) in ends:
                meant = self._scrambled.get(_shape(word), word)
                if meant != word:
                    result[place], changed = meant, True
        return result if changed else None


SCRAMBLED_LENGTH = 6
"""Shorter words are other words too often when their letters change places."""


def _shape(word: str) -> str:
    return word[0] + "".join(sorted(word[1:-1])) + word[-1]


def _end_of(item: Phrase, tokens: list[str], start: int) -> int:
    """Return the place after a phrase that begins at ``start``, or 0 if it does not stand there."""
    place = start
    for gap, kind in item.then:
        between = 0
        while True:
            place += 1
            if place >= len(tokens) or (token := tokens[place]) == STOP:
                return 0
            if token in kind:
                break
            if token not in _BREAKS:
                between += 1
                if between > gap:
                    return 0
    if place + 1 < len(tokens) and tokens[place + 1] in item.unless_next:
        return 0
    return place + 1


_BREAKS = frozenset({QUOTE, CLAUSE})

# Who is spoken of. "Why do models ignore earlier instructions?" is a question about models.
_OTHERS = words(
    "users user people attackers attacker hackers hacker someone somebody anyone everyone models model llm llms ai ais"
    " chatbot chatbots bots bot assistants they he she who students employees developers customers kids children"
    " agents agent prompts inputs messages documents patients drivers compiler compilers interpreter"
)
_OWN = words("i we")
_ADDRESSED = words("you your yours yourself u du dein deine deinen sie tu tus ton tes toi vous vos ты твои вы ваши")
_ASKING = words(
    "how what why when who which where does do did can could should would is are if whether prevent stop detect"
    " wie was warum wieso wann como por que comment pourquoi как почему"
)
_HELPING = words(
    "can could should shall may might must do did will would want wanted need needed have had to not just simply"
    " safely always often accidentally also please dont don't didn't"
)
_NOT = words("not never don't dont didn't doesn't won't nicht nie no nunca jamais pas не")
_OF_OWN = words("i we my our mine ich wir meine meinen yo mi mis mes je mon мои мой я")
_ABOUT = words(
    "mean means meant meaning phrase phrases sentence sentences explain translate translation detect detects detecting"
    " filter filters block blocks prevent recognise recognize classify attack attacks injection injections string"
    " bedeutet bedeuten satz erkläre übersetze erkennen angriff significa frase explica traduce detectar ataque"
    " signifie veut explique traduis détecter attaque phrase означает значит фраза объясни переведи фразу"
)


def _is_mentioned(tokens: list[str], start: int, end: int) -> bool:
    """Tell whether a phrase is spoken about: quoted with a word on quotes, said of others, denied, or of one's own."""
    if not _OF_OWN.isdisjoint(tokens[start + 1 : end - 1]):
        return True
    if tokens[:start].count(QUOTE) % 2 and QUOTE in tokens[end:]:
        opening = start - 1 - tokens[start - 1 :: -1].index(QUOTE)
        closing = tokens.index(QUOTE, end)
        outside = tokens[:opening] + tokens[closing:]
        return not _ABOUT.isdisjoint(outside)
    if start and tokens[start - 1] in _NOT:
        return True
    return _has_other_subject(tokens, start)


def _has_other_subject(tokens: list[str], start: int) -> bool:
    between: set[str] = set()
    for place in range(start - 1, max(start - 1 - LOOK_BACK, -1), -1):
        token = tokens[place]
        if token in (STOP, CLAUSE) or token in _ADDRESSED:
            return False
        if token in _OWN:
            return between <= _HELPING
        if token in _OTHERS and not _ASKING.isdisjoint(_sentence_before(tokens, place)):
            return True
        between.add(token)
    return False


def _sentence_before(tokens: list[str], place: int) -> list[str]:
    begin = place
    while begin > 0 and place - begin < LOOK_BACK and tokens[begin - 1] != STOP:
        begin -= 1
    return tokens[begin:place]
