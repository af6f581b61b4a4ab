"""Answers that hold somebody's key."""

from __future__ import annotations

import re

from chat_grpc.conversation.guardrails import Found

MAX_BEGUN = 120
"""Characters after which a word that looked like the beginning of a key is passed on."""
DISTINCT = 10
"""A random key of twenty characters has more different ones than that; "xxxx" has not."""

_PREFIXES = (
    "sk-", "AIza", "ghp_", "gho_", "ghs_", "ghu_", "ghr_", "github_pat_", "glpat-", "AKIA", "ASIA", "xoxa-", "xoxb-",
    "xoxe-", "xoxo-", "xoxp-", "xoxr-", "xoxs-", "hf_", "npm_", "rk_live_", "sk_live_", "SG.", "ya29.", "dop_v1_",
)  # fmt: skip
_KEY = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"sk-[A-Za-z0-9_-]{20,}|AIza[A-Za-z0-9_-]{35}|gh[opsur]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{30,}"
    r"|glpat-[A-Za-z0-9_-]{20,}|(?:AKIA|ASIA)[A-Z0-9]{16}|xox[abeoprs]-[A-Za-z0-9-]{20,}|hf_[A-Za-z0-9]{30,}"
    r"|npm_[A-Za-z0-9]{30,}|[rs]k_live_[A-Za-z0-9]{20,}|SG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}"
    r"|ya29\.[A-Za-z0-9_-]{20,}|dop_v1_[a-f0-9]{40,})"
)
_BEGUN = re.compile(rf"(?<![A-Za-z0-9])(?:{'|'.join(map(re.escape, _PREFIXES))})[A-Za-z0-9_.-]*\Z")
_PLACEHOLDER = re.compile(r"example|your|xxxx|placeholder|changeme|dummy|fake|12345|abcdef|\.\.\.", re.IGNORECASE)

_PRIVATE_KEY = re.compile(r"-----BEGIN (?:[A-Z0-9]{1,16} ){0,2}PRIVATE KEY-----\s{0,8}[A-Za-z0-9+/]{24}")
_PRIVATE_KEY_BEGUN = re.compile(
    r"-----BEGIN (?:[A-Z0-9]{1,16} ){0,2}PRIVATE KEY(?:-{0,4}|-----\s{0,8}[A-Za-z0-9+/]{0,23})\Z"
)

_JWT = re.compile(r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{8,}+\.eyJ[A-Za-z0-9_-]{8,}+\.[A-Za-z0-9_-]{8}")
_JWT_BEGUN = re.compile(r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]*+(?:\.[A-Za-z0-9_-]*+){0,2}\Z")

_EMPHASIS = frozenset("*`~\u200b\u200c\u200d\u2060\ufeff")
"""What may stand between the characters of a key without changing how it is read."""


class KeyLeak:
    """Withholds what has the form of a well-known API key, and is not an example of one."""

    id = "leak.key"
    short: frozenset[bytes] = frozenset()
    long: frozenset[bytes] = frozenset()

    def look(self, text: str, _squeezed: bytes, question: str, /) -> Found | None:
        """See OutputRule."""
        bare, places = _bare(text)
        for prefix in _PREFIXES:
            if prefix in bare:
                break
        else:
            return None
        for key in _KEY.finditer(bare):
            if _is_random(key[0]) and key[0] not in question:
                return Found(places[key.start()], certain=True)
        begun = _BEGUN.search(bare)
        if begun and len(begun[0]) <= MAX_BEGUN and not (len(begun[0]) >= MAX_KNOWN and begun[0] in question):
            return Found(places[begun.start()], certain=False)
        return None


MAX_KNOWN = 12
"""Characters from which on the beginning of a key that the question holds is not held back."""


class PrivateKeyLeak:
    """Withholds private keys in PEM."""

    id = "leak.private_key"
    short = frozenset({b"ekey"})
    """The end of "PRIVATE KEY", after which the key itself follows."""
    long: frozenset[bytes] = frozenset()

    def look(self, text: str, _squeezed: bytes, question: str, /) -> Found | None:
        """See OutputRule."""
        if "-----BEGIN" not in text:
            return None
        if found := _PRIVATE_KEY.search(text):
            return None if found[0] in question else Found(found.start(), certain=True)
        begun = _PRIVATE_KEY_BEGUN.search(text)
        return Found(begun.start(), certain=False) if begun else None


class TokenLeak:
    """Withholds JSON web tokens. Documentation is full of harmless ones."""

    id = "leak.token"
    short: frozenset[bytes] = frozenset()
    long: frozenset[bytes] = frozenset()

    def look(self, text: str, _squeezed: bytes, question: str, /) -> Found | None:
        """See OutputRule."""
        if "eyJ" not in text:
            return None
        if found := _JWT.search(text):
            return None if found[0] in question else Found(found.start(), certain=True)
        begun = _JWT_BEGUN.search(text)
        return Found(begun.start(), certain=False) if begun and len(begun[0]) <= 10 * MAX_BEGUN else None


def _bare(text: str) -> tuple[str, range | list[int]]:
    """Return a text without emphasis, and where in it each character stood."""
    if text.isascii() and "*" not in text and "`" not in text and "~" not in text:  # thrice as quick as isdisjoint
        return text, range(len(text) + 1)
    if _EMPHASIS.isdisjoint(text):
        return text, range(len(text) + 1)
    places = [place for place, character in enumerate(text) if character not in _EMPHASIS]
    return "".join(text[place] for place in places), places


def _is_random(key: str) -> bool:
    letters = any(character.isalpha() for character in key)
    digits = any(character.isdigit() for character in key)
    return letters and digits and len(set(key)) > DISTINCT and not _PLACEHOLDER.search(key)
