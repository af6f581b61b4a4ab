"""The parts of a text that are encoded, and what they say."""

from __future__ import annotations

import base64
import binascii
import codecs
import html
import re
from collections.abc import Iterator
from urllib.parse import unquote

MAX_BLOCKS = 16
"""Encoded parts that are looked into; a message with more of them is data."""
READABLE = 0.9
"""The share of letters, spaces and punctuation above which bytes are taken for a text."""

_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{20,}+={0,2}")
HEX = re.compile(r"(?<![0-9A-Za-z])(?:(?:0x|\\x)?[0-9A-Fa-f]{2}[ :,]?){12,}+")
"""Twelve letters in hex, or more."""
_HEX_NOISE = re.compile(r"0x|\\x|[ :,]")
_PERCENT = re.compile(r"(?:%[0-9A-Fa-f]{2}[A-Za-z]{0,2}){6,}+")
_ENTITY = re.compile(r"(?:&#x?[0-9A-Fa-f]{2,5};\s?){6,}+")
_ESCAPE = re.compile(r"(?:\\u[0-9A-Fa-f]{4}\s?){6,}+")
# "ignore", "instructions", "previous", "system", "prompt" and "disregard" as rot13 writes them, and backwards.
_IN_ROT13 = ("vtaber", "vafgehpgvbaf", "cerivbhf", "flfgrz", "cebzcg", "qvfertneq")
_FROM_BEHIND = ("erongi", "snoitcurtsni", "suoiverp", "metsys", "tpmorp", "dragersid")
_ROT13 = re.compile(rf"\b(?:{'|'.join(_IN_ROT13)})\b", re.IGNORECASE)
_BACKWARDS = re.compile(rf"\b(?:{'|'.join(_FROM_BEHIND)})\b", re.IGNORECASE)
CIPHERED = frozenset((*_IN_ROT13, *_FROM_BEHIND))
"""The words by which a text is known to be written so."""


def decoded(text: str) -> Iterator[str]:
    """Yield what the encoded parts of a text say, as far as that is text again. Nothing is decoded twice."""
    found = 0
    for mark, pattern, decode in _CODES:
        if mark not in text:
            continue
        for block in pattern.finditer(text):
            found += 1
            if found > MAX_BLOCKS:
                return
            said = decode(block[0])
            if said and _is_text(said):
                yield said
    if _ROT13.search(text):
        yield codecs.decode(text, "rot13")
    if _BACKWARDS.search(text):
        yield text[::-1]


def _of_base64(block: str) -> str:
    stripped = block.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(stripped + "=" * (-len(stripped) % 4)).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""


def _of_hex(block: str) -> str:
    digits = _HEX_NOISE.sub("", block)
    try:
        return bytes.fromhex(digits[: len(digits) // 2 * 2]).decode()
    except ValueError:
        return ""


def _of_escapes(block: str) -> str:
    return "".join(chr(int(code, 16)) for code in re.findall(r"[0-9A-Fa-f]{4}", block))


_CODES = (
    ("", _BASE64, _of_base64),
    ("", HEX, _of_hex),
    ("%", _PERCENT, unquote),
    ("&#", _ENTITY, html.unescape),
    ("\\u", _ESCAPE, _of_escapes),
)
"""How each code is recognised, quickly and then surely, and read."""


def _is_text(said: str) -> bool:
    readable = sum(character.isalpha() or character in " \n.,:;!?'\"-" for character in said)
    return readable >= READABLE * len(said)
