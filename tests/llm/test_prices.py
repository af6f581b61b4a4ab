"""What models cost and how much they read at once, by litellm's table and without litellm."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from chat_grpc.domain import Usage
from chat_grpc.embedded import llama
from chat_grpc.llm import catalog, contexts
from chat_grpc.llm.catalog import Catalog
from chat_grpc.llm.contexts import Contexts
from chat_grpc.llm.prices import Prices

USAGE = Usage(1_000, 100, 1_100)


def row(owner: str, reads: float | None, writes: float | None, **fields: Any) -> dict[str, Any]:
    """Return a row of the table, with prices in USD per million tokens."""
    prices = {"input_cost_per_token": reads, "output_cost_per_token": writes}
    costs = {name: price / 1e6 for name, price in prices.items() if price is not None}
    return {"litellm_provider": owner, "mode": "chat", "max_input_tokens": 50_000} | costs | fields


TABLE = {
    "sample_spec": {"max_tokens": "in words", "mode": "one of: chat, ..."},
    "gemini/flash": row("gemini", 1, 10),
    "gpt": row("openai", 2, 20),
    "claude-4-5": row("anthropic", 3, 30),
    "vertex-claude": row("vertex_ai-anthropic_models", 4, 40),
    "groq/openai/gpt": row("groq", 5, 50),
    "painter": row("openai", 6, 60, mode="image_generation"),
    "unpriced": row("openai", None, None, max_input_tokens=None, max_tokens=7_000),
    "oddity": row("openai", 7, 70, max_input_tokens={"all": 1}),
    "tiered": row(
        "openai",
        1,
        1,
        input_cost_per_token_above_128k_tokens=2e-6,
        output_cost_per_token_above_128k_tokens=3e-6,
        input_cost_per_token_above_200k_tokens=4e-6,
        input_cost_per_token_above_200k_tokens_priority=9e-6,
    ),
}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    file = tmp_path / "table.json"
    file.write_text(json.dumps(TABLE), encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("model", "cost"),
    [
        ("gemini/flash", 0.002),
        ("openrouter/google/flash", 0.002),
        ("openai/gpt", 0.004),
        ("gpt", 0.004),
        ("openrouter/openai/gpt:nitro", 0.004),
        ("anthropic/claude-4-5", 0.006),
        ("litellm/anthropic/claude-4-5", 0.006),
        ("openrouter/anthropic/claude-4.5", 0.006),
        ("vertex_ai/vertex-claude", 0.008),
        ("groq/openai/gpt", 0.01),
        ("local/gpt", 0.0),
        ("extractive/extractive", 0.0),
        ("openrouter/whoever/model:free", 0.0),
        ("openrouter/whoever/gpt", None),
        ("openai/claude-4-5", None),
        ("openai/painter", None),
        ("openai/unpriced", None),
        ("openai/oddity", None),
        ("sample_spec", None),
        ("openai/", None),
        ("", None),
    ],
)
async def test_cost(table: Path, model: str, cost: float | None) -> None:
    assert await Prices(Catalog(table)).cost(model, USAGE) == cost


async def test_what_the_provider_says_goes_before_the_table(table: Path) -> None:
    prices = Prices(Catalog(table))
    assert await prices.cost("gemini/flash", Usage(1_000, 100, 1_100, 0.5)) == 0.5
    assert await prices.cost("gemini/flash", Usage(1_000, 100, 1_100, 0.0)) == 0.0
    assert await prices.cost("unheard/of", Usage(1_000, 100, 1_100, 0.5)) == 0.5


@pytest.mark.parametrize(
    ("prompt_tokens", "cost"),
    [(0, 1e-6), (128_000, 0.128001), (128_001, 0.256005), (200_000, 0.400003), (200_001, 0.800005)],
)
async def test_long_prompts_have_prices_of_their_own(table: Path, prompt_tokens: int, cost: float) -> None:
    assert await Prices(Catalog(table)).cost("openai/tiered", Usage(prompt_tokens, 1, prompt_tokens + 1)) == cost


@pytest.mark.parametrize(
    ("model", "window"),
    [
        ("gemini/flash", 50_000),
        ("openai/unpriced", 7_000),
        ("openai/oddity", contexts.UNKNOWN),
        ("unheard/of", contexts.UNKNOWN),
        ("local/gpt", contexts.LOCAL),
        ("extractive/extractive", contexts.UNLIMITED),
    ],
)
async def test_context_windows(table: Path, model: str, window: int) -> None:
    assert await Contexts(Catalog(table)).window(model) == window


async def test_a_configured_context_goes_before_the_table(table: Path) -> None:
    configured = Contexts(Catalog(table), configured=2_000)
    assert [await configured.window(model) for model in ("gemini/flash", "local/gpt", "unheard/of")] == [2_000] * 3


def test_a_local_model_reads_what_llama_gives_a_stream() -> None:
    assert contexts.LOCAL == llama.CONTEXT_TOKENS // llama.STREAMS


async def test_the_table_that_litellm_ships_knows_today_s_names() -> None:
    shipped = Catalog()
    prices, windows = Prices(shipped), Contexts(shipped)
    for model in ("gemini/gemini-flash-latest", "openrouter/google/gemini-2.5-flash", "openai/gpt-5-mini", "gpt-4o"):
        cost = await prices.cost(model, USAGE)
        assert cost is not None, model
        assert 0.000_01 < cost < 0.1, model
        assert await windows.window(model) >= 100_000, model
    assert await windows.window("openrouter/nvidia/nemotron-nano-9b-v2:free") == 128_000


async def test_callers_at_once_read_the_table_once(table: Path) -> None:
    prices, other = Prices(Catalog(table)), Prices(Catalog(table))
    leaving = asyncio.ensure_future(prices.cost("gemini/flash", USAGE))
    waiting = asyncio.ensure_future(prices.cost("gemini/flash", USAGE))
    await asyncio.sleep(0)
    leaving.cancel()
    assert await waiting == 0.002
    await asyncio.to_thread(table.unlink)
    assert await prices.cost("openai/gpt", USAGE) == 0.004
    assert await other.cost("openai/gpt", USAGE) is None


@pytest.mark.parametrize("text", [b"", b"{", b"[1, 2]", b'{"a": 1}'])
async def test_a_table_of_another_form_leaves_prices_unknown(table: Path, text: bytes) -> None:
    await asyncio.to_thread(table.write_bytes, text)
    assert await Prices(Catalog(table)).cost("gemini/flash", USAGE) is None


async def test_without_litellm_prices_are_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "PACKAGE", "a_package_that_nobody_has")
    nothing = Catalog()
    assert await Prices(nothing).cost("openai/gpt-5-mini", USAGE) is None
    assert await Prices(nothing).cost("local/gpt-5-mini", USAGE) == 0.0
    assert await Contexts(nothing).window("openai/gpt-5-mini") == contexts.UNKNOWN


def test_litellm_is_not_imported() -> None:
    code = (
        "import asyncio, sys; from chat_grpc.llm.catalog import Catalog; "
        "assert asyncio.run(Catalog().find('openai/gpt-5-mini')); print('litellm' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stdout == "False\n", done.stderr
