"""What is known of models: their prices and how much they read at once, from the table that litellm ships.

The table is a file of litellm's package. litellm itself is never imported for
it: that takes seconds and 200 MB, reading the file some 20 ms and 2 MB.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

import msgspec

from chat_grpc.telemetry import logs

log = logs.get(__name__)

PACKAGE = "litellm"
TABLE = "model_prices_and_context_window_backup.json"

WRITING_MODES = frozenset({"chat", "completion", "responses"})
"""Models that do anything else, such as paint or transcribe, are left out."""
LONG_PROMPTS = b"_cost_per_token_above_"
TIER = re.compile(r"(input|output)_cost_per_token_above_(\d+)k_tokens")

VENDORS = {"anthropic": "anthropic", "google": "gemini", "openai": "openai", "x-ai": "xai"}
"""Vendors who alone serve their models, as OpenRouter names them: it passes their prices on unchanged."""


class Tier(msgspec.Struct, frozen=True, gc=False):
    """Prices in USD per token; they hold for prompts of more than ``above`` tokens."""

    above: int
    input_cost: float
    output_cost: float


class Model(msgspec.Struct, frozen=True):
    """What the table says of one model; ``tiers`` begins with the longest prompts and is empty without prices."""

    context: int | None
    tiers: tuple[Tier, ...]
    owner: str
    """litellm's name for who serves it, such as "openai" or "vertex_ai-anthropic_models"."""


class _Row(msgspec.Struct):
    """The fields of the table that are used."""

    litellm_provider: str = ""
    mode: str = ""
    input_cost_per_token: float | None = None
    output_cost_per_token: float | None = None
    max_input_tokens: int | None = None
    max_tokens: int | None = None


class Catalog:
    """The models that litellm's table knows; none of them without litellm.

    The file is read once, on a thread, when it is first needed.
    """

    def __init__(self, file: Path | None = None) -> None:
        """Take the table from ``file``, or from litellm's package."""
        self._file = file
        self._models: dict[str, Model] = {}
        self._loading: asyncio.Task[None] | None = None

    async def preload(self) -> None:
        """Read the table now rather than when it is first needed."""
        if self._loading is None:
            self._loading = asyncio.ensure_future(self._load())
        # Whoever waits may leave; the others wait on.
        await asyncio.shield(self._loading)

    async def find(self, name: str) -> Model | None:
        """Return what is known of "provider/model", in this program's words or in litellm's; None if nothing is."""
        await self.preload()
        for candidate, owner in _candidates(name):
            model = self._models.get(candidate)
            if model is not None and model.owner.startswith(owner):
                return model
        return None

    async def _load(self) -> None:
        file = self._file or _packaged()
        if file is None:
            log.info("no table of models: litellm is not installed, so prices are unknown")
            return
        try:
            self._models = await asyncio.to_thread(_read, file)
        except (OSError, msgspec.DecodeError):
            log.warning("the table of models can't be read, so prices are unknown", file=str(file))


def folder() -> Path | None:
    """Return the folder of litellm's package, without importing it; None if it is not installed."""
    spec = find_spec(PACKAGE)
    places = list(spec.submodule_search_locations or ()) if spec else []
    return Path(places[0]) if places else None


def _packaged() -> Path | None:
    home = folder()
    return home / TABLE if home else None


def _read(file: Path) -> dict[str, Model]:
    # Row by row: one row of a form that a later release invents must not cost all the others.
    rows = msgspec.json.decode(file.read_bytes(), type=dict[str, msgspec.Raw])
    decoder = msgspec.json.Decoder(_Row)
    owners: dict[str, str] = {}
    models: dict[str, Model] = {}
    for name, raw in rows.items():
        try:
            row = decoder.decode(raw)
        except msgspec.ValidationError:
            continue
        if row.mode in WRITING_MODES:
            owner = owners.setdefault(row.litellm_provider, row.litellm_provider)
            models[name] = Model(row.max_input_tokens or row.max_tokens, _tiers(row, raw), owner)
    return models


def _tiers(row: _Row, raw: msgspec.Raw) -> tuple[Tier, ...]:
    if row.input_cost_per_token is None or row.output_cost_per_token is None:
        return ()
    usual = Tier(0, row.input_cost_per_token, row.output_cost_per_token)
    if LONG_PROMPTS not in bytes(raw):
        return (usual,)
    return (*_long_prompts(usual, msgspec.json.decode(raw)), usual)


def _long_prompts(usual: Tier, fields: Mapping[str, object]) -> list[Tier]:
    """Return the tiers above the usual one, the longest prompts first."""
    costs: dict[int, dict[str, float]] = {}
    for field, value in fields.items():
        if (match := TIER.fullmatch(field)) and isinstance(value, int | float):
            costs.setdefault(int(match[2]) * 1000, {})[match[1]] = value
    return [
        Tier(above, cost.get("input", usual.input_cost), cost.get("output", usual.output_cost))
        for above, cost in sorted(costs.items(), reverse=True)
    ]


def _candidates(name: str) -> Iterator[tuple[str, str]]:
    """Yield the table's keys that a model may stand under, each with what its owner must begin with."""
    name = name.removeprefix("litellm/")
    yield name, ""
    provider, _, model = name.partition("/")
    if provider == "openrouter":
        vendor, _, model = model.partition("/")
        # What follows a colon names a variant of the service, such as ":nitro".
        model = model.partition(":")[0]
        if vendor in VENDORS:
            yield from _candidates(f"{VENDORS[vendor]}/{model}")
    elif model:
        yield model, provider
        if provider == "anthropic":
            # OpenRouter writes claude-sonnet-4.5, Anthropic claude-sonnet-4-5.
            yield model.replace(".", "-"), provider
