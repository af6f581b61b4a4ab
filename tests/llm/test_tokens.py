"""Tokens are counted by the vocabulary that litellm ships, without litellm and without a network."""
# ruff: noqa: RUF001 (the texts are Chinese and Russian)

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from chat_grpc.llm import catalog, tokens
from chat_grpc.llm.tokens import TokenCounter, estimate, most

ENGLISH = (
    "The night train left the coast at nine, two hours late, and nobody on the platform seemed surprised. Most of the "
    "passengers had brought blankets; a few had brought instruments, and by the second tunnel there was a song going. "
    "If you miss the connection at the junction, ask the station master for the green slip."
)
CZECH = (
    "Noční vlak vyjel od pobřeží v devět hodin, s dvouhodinovým zpožděním, a nikdo na nástupišti nevypadal překvapeně. "
    "Většina cestujících si přivezla přikrývky, někteří i hudební nástroje, a za druhým tunelem se už zpívalo. "
    "Pokud zmeškáte přípoj na křižovatce, požádejte výpravčího o zelený lístek."
)
CHINESE = (
    "夜班火车在九点钟离开海岸，晚了两个小时，站台上似乎没有人感到惊讶。大多数乘客都带了毯子，有几个人还带了乐器。"
    "如果您在枢纽站错过了换乘，请向站长索要绿色的凭条，它在第二天晚上之前对任何列车都有效。"
)
RUSSIAN = "Ночной поезд отошёл от побережья в девять часов, с опозданием на два часа, и никто, казалось, не удивился."
CODE = Path(tokens.__file__).read_text(encoding="utf-8")
JSON = (
    '{"id": "b7c1", "items": [{"sku": "A-1009", "qty": 3, "price": 12.5}], "paid": true, "at": "2025-04-01T09:00:00Z"}'
)
TEXTS = {"english": ENGLISH, "czech": CZECH, "chinese": CHINESE, "russian": RUSSIAN, "code": CODE, "json": JSON}

WITHOUT_NETWORK = """
import asyncio, socket, sys

def refuse(*_, **__):
    raise AssertionError("something asked for the network")

loop = asyncio.new_event_loop()  # it makes a pair of sockets for itself
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse

from chat_grpc.llm.tokens import TokenCounter

counter = TokenCounter()
loop.run_until_complete(counter.load())
print(counter.exact, counter.count("Hello world"), "litellm" in sys.modules)
loop.close()
"""


@pytest.fixture
async def counter() -> TokenCounter:
    loaded = TokenCounter()
    await loaded.load()
    return loaded


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", 0), ("Hello world", 2), ("antidisestablishmentarianism", 6), ("2 + 2 = 4", 7), ("お誕生日おめでとう", 9)],
)
async def test_texts_are_really_counted(counter: TokenCounter, text: str, expected: int) -> None:
    assert counter.exact
    assert counter.count(text) == expected


async def test_what_looks_like_a_control_token_is_text(counter: TokenCounter) -> None:
    assert counter.count("<|endoftext|>") > 1


def test_neither_the_network_nor_litellm_is_needed(tmp_path: Path) -> None:
    environ = {"PYTHONPATH": str(Path(__file__).parents[2]), "HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_NETWORK], env=environ, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.stdout.split() == ["True", "2", "False"], done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", TEXTS)
async def test_the_estimate_is_close_and_never_far_below(counter: TokenCounter, name: str) -> None:
    exact = counter.count(TEXTS[name])
    assert 0.9 * exact <= estimate(TEXTS[name]) <= 1.75 * exact


@pytest.mark.parametrize("text", [*TEXTS.values(), "", "a", "🚂🚃🚃", "\x00\x01", "ﷺ" * 9], ids=lambda text: text[:9])
async def test_no_text_has_more_tokens_than_bytes(counter: TokenCounter, text: str) -> None:
    assert counter.count(text) <= most(text) == len(text.encode())


async def test_before_the_vocabulary_is_loaded_tokens_are_estimated() -> None:
    counter = TokenCounter()
    assert counter.count(CZECH) == estimate(CZECH)
    await counter.load()
    assert counter.count(CZECH) != estimate(CZECH)


def test_an_estimate_is_nothing_only_for_nothing() -> None:
    assert [estimate(text) > 0 for text in ("", " ", "a", ".", "é", "语")] == [False, True, True, True, True, True]


async def test_without_litellm_tokens_are_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "PACKAGE", "a_package_that_nobody_has")
    counter = TokenCounter()
    await counter.load()
    assert not counter.exact
    assert counter.count(ENGLISH) == estimate(ENGLISH)


async def test_a_damaged_vocabulary_is_neither_used_nor_fetched_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "a_package_with_a_damaged_file"
    file = package / tokens.FOLDER / tokens.FILE
    file.parent.mkdir(parents=True)
    (package / "__init__.py").touch()
    file.write_bytes(b"IQ== 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(catalog, "PACKAGE", package.name)
    counter = TokenCounter()
    await counter.load()
    assert not counter.exact
    assert file.read_bytes() == b"IQ== 0\n"


def test_the_file_is_named_as_tiktoken_looks_for_it() -> None:
    address = f"https://openaipublic.blob.core.windows.net/encodings/{tokens.ENCODING}.tiktoken"
    assert hashlib.sha1(address.encode(), usedforsecurity=False).hexdigest() == tokens.FILE


async def test_counts_are_remembered_within_bounds(counter: TokenCounter) -> None:
    expected = counter.count(ENGLISH)
    for number in range(40):
        counter.count(f"{number} {CODE[:2_000]} " * 20)
    assert counter._known.currsize <= tokens.REMEMBERED_CHARACTERS
    assert counter.count(ENGLISH) == expected
    longest = "word " * tokens.REMEMBERED_CHARACTERS
    assert counter.count(longest) > tokens.REMEMBERED_CHARACTERS // 2
    assert longest not in counter._known
