"""Counting tokens.

Each family of models has a vocabulary of its own, and few of them are at hand.
One stands for all: cl100k_base, which litellm's package holds. Newer and larger
vocabularies need fewer tokens for the same text (the same for English and code,
a third less for Czech or Chinese), so its counts err on the side that always
fits; only the smallest models, with vocabularies half its size, need more.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import os
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path

from cachetools import LRUCache

from chat_grpc.llm import catalog
from chat_grpc.telemetry import logs

log = logs.get(__name__)

ENCODING = "cl100k_base"
FOLDER = Path("litellm_core_utils", "tokenizers")
FILE = "9b5ad71b2ce5302211f9c61530b329a4922fc6a4"
"""tiktoken's name for the vocabulary's file: the SHA-1 of the address it would fetch it from."""
SHA256 = "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"

WORTH_REMEMBERING = 100
"""Characters; counting less is as fast as looking it up."""
REMEMBERED_CHARACTERS = 1_000_000

LETTERS = bytes(range(ord("A"), ord("Z") + 1)) + bytes(range(ord("a"), ord("z") + 1))
SPACE = b" \t\r\n"
TOKENS_PER_BYTE = (
    (LETTERS, 0.25),
    (SPACE, 0.2),
    (bytes(set(range(0x80)) - set(LETTERS + SPACE)), 0.7),
    # From here on the first byte of a character counts for all of it.
    (bytes(range(0xC2, 0xCA)), 2.0),  # Latin letters with marks, which tear words apart
    (bytes(range(0xCA, 0xE0)), 0.95),  # Greek, Cyrillic, Hebrew, Arabic
    (bytes(range(0xE0, 0xF0)), 1.3),  # Chinese, Japanese, Korean, the scripts of India
    (bytes(range(0xF0, 0xF8)), 3.0),  # emoji
)


def estimate(text: str) -> int:
    """Return about how many tokens a text has, more often too many than too few; 0 only for an empty one."""
    data = text.encode()
    weight = 0.0
    for members, tokens in TOKENS_PER_BYTE:
        rest = data.translate(None, members)
        weight += (len(data) - len(rest)) * tokens
        data = rest
    return math.ceil(weight)


def most(text: str) -> int:
    """Return a number of tokens that no text of this length exceeds: every token has a byte at least."""
    return len(text) if text.isascii() else len(text.encode())


class TokenCounter:
    """Counts tokens; by estimate until ``load`` has ended, and without litellm's vocabulary for good.

    An instance belongs to one event loop's thread.
    """

    def __init__(self) -> None:
        self._exact: Callable[[str], int] | None = None
        self._loading: asyncio.Future[Callable[[str], int] | None] | None = None
        self._known: LRUCache[str, tuple[int, int]] = LRUCache(REMEMBERED_CHARACTERS, itemgetter(0))

    @property
    def exact(self) -> bool:
        """Whether texts are really counted."""
        return self._exact is not None

    def count(self, text: str) -> int:
        """Return how many tokens a text has.

        About 0.1 ms for 1,000 characters, and 1 microsecond for a longer text
        that was counted lately: what was said before in a conversation, the
        system prompt and most passages come again and again.
        """
        if self._exact is None:
            return estimate(text)
        if not WORTH_REMEMBERING <= len(text) <= REMEMBERED_CHARACTERS // 8:
            return self._exact(text)
        known = self._known.get(text)
        if known is None:
            known = self._known[text] = (len(text), self._exact(text))
        return known[1]

    async def load(self) -> None:
        """Load the vocabulary, once: 46 MB, and 0.2 s on a thread, of which Python stands still for 0.08 s.

        Whoever must know exactly waits for this; most requests fit by far, and
        most servers never need it.
        """
        if self._loading is None:
            self._loading = asyncio.ensure_future(asyncio.to_thread(_load))
        self._exact = await asyncio.shield(self._loading)


def _load() -> Callable[[str], int] | None:
    """Return what counts the tokens of a text, or None if the vocabulary is not here. Never uses the network."""
    home = catalog.folder()
    file = home / FOLDER / FILE if home else None
    # tiktoken would delete a file that is not as it should be, and fetch another.
    if file is None or not _is_whole(file):
        log.info("no vocabulary is installed, so tokens are estimated")
        return None
    # litellm sets this too when it is imported, to the same folder; from then on both share one copy in memory.
    os.environ["TIKTOKEN_CACHE_DIR"] = str(file.parent)
    try:
        import tiktoken

        encoding = tiktoken.get_encoding(ENCODING)
    except (ImportError, OSError, ValueError):
        log.warning("the vocabulary can't be loaded, so tokens are estimated", file=str(file))
        return None

    def count(text: str) -> int:
        # Nothing that a text spells is one of the vocabulary's control tokens.
        return len(encoding.encode_ordinary(text))

    return count


def _is_whole(file: Path) -> bool:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest() == SHA256
    except OSError:
        return False
