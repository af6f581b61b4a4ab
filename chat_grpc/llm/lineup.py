"""Who answers, and in which order, as the settings say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from chat_grpc.llm.catalog import folder
from chat_grpc.settings import Secret, Settings

OWN_DEFAULTS = {
    "gemini": "gemini-flash-latest",
    "openrouter": "nvidia/nemotron-nano-9b-v2:free",
    "openai": "gpt-5-mini",
    "local": "local",
    "extractive": "quotes",
}
"""The providers that need no litellm, and the model of each where the settings name none."""
OPENAI_URL = "https://api.openai.com/v1"
WITHOUT_ADDRESS = frozenset({"gemini", "openrouter", "extractive"})
"""The providers that CHAT_LLM_BASE_URL and CHAT_LLM_API_KEY are never for."""

_ENUM = re.compile(r"^class LlmProviders\(.*\):\n((?:[ \t]+.*\n|\n)+)", re.MULTILINE)
_MEMBER = re.compile(r'^ +[A-Z0-9_]+ = "([^"]+)"', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Place:
    """One place in the order: a provider, its model, and how it is reached.

    ``base_url`` is "" where the provider has its own; ``key_setting`` is what a
    person changes when the key is refused.
    """

    provider: str
    model: str
    base_url: str
    api_key: Secret
    key_setting: str


def lineup(settings: Settings) -> tuple[Place, ...]:
    """Return the places, first choice first; no provider and model stand in two.

    After the provider and the fallbacks that the settings name comes the other
    one of gemini and openrouter, if both have a key, and then extractive, if it
    is wanted.
    """
    chosen = _chosen(settings)
    pairs = [(chosen, settings.llm_model or OWN_DEFAULTS.get(chosen, "")), *_fallbacks(settings)]
    for other, is_other in (("gemini", chosen == "openrouter"), ("openrouter", chosen == "gemini")):
        if is_other and _keys(settings)[other] and other not in {name for name, _ in pairs}:
            pairs.append((other, OWN_DEFAULTS[other]))
    if settings.llm_fallback_extractive:
        pairs.append(("extractive", OWN_DEFAULTS["extractive"]))
    return tuple(_place(settings, name, model) for name, model in dict.fromkeys(pairs))


def faults(settings: Settings) -> Iterator[str]:
    """Yield what is wrong with the order: a provider that nobody knows, or that lacks what it needs."""
    chosen, *others = lineup(settings)
    given = f"CHAT_LLM_PROVIDER={settings.llm_provider!r}"
    yield from _faults(settings, chosen, given)
    if not chosen.model:
        yield f"{given}: needs CHAT_LLM_MODEL beside it, for example CHAT_LLM_MODEL=claude-sonnet-4-5 for anthropic"
    for place in others:
        yield from _faults(settings, place, f"CHAT_LLM_FALLBACKS: {place.provider}")


def litellm_providers() -> frozenset[str]:
    """Return the names of litellm's providers, without importing it; none if it is not installed.

    They are read from its source: importing it takes seconds and 200 MB.
    """
    home = folder()
    if home is None:
        return frozenset()
    members = _ENUM.search((home / "types" / "utils.py").read_text(encoding="utf-8"))
    named = _MEMBER.findall(members[1]) if members else []
    configured = msgspec.json.decode((home / "llms" / "openai_like" / "providers.json").read_bytes(), type=dict)
    return frozenset(named) | configured.keys()


def _chosen(settings: Settings) -> str:
    keys = _keys(settings)
    return settings.llm_provider or next(
        (name for name in ("gemini", "openrouter", "openai") if keys[name]), "extractive"
    )


def _fallbacks(settings: Settings) -> list[tuple[str, str]]:
    pairs = (pair.strip().partition("/") for pair in settings.llm_fallbacks.split(",") if pair.strip())
    return [(name, model) for name, _, model in pairs]


def _keys(settings: Settings) -> dict[str, Secret]:
    return {
        "gemini": settings.gemini_api_key,
        "openrouter": settings.openrouter_api_key,
        "openai": settings.openai_api_key or settings.llm_api_key,
    }


def _addressee(settings: Settings) -> str:
    """Return the provider that CHAT_LLM_BASE_URL and CHAT_LLM_API_KEY are for: a key never goes to two of them."""
    names = (_chosen(settings), *(name for name, _ in _fallbacks(settings)))
    return next((name for name in names if name not in WITHOUT_ADDRESS), "")


def _place(settings: Settings, name: str, model: str) -> Place:
    match name:
        case "gemini":
            return Place(name, model, settings.gemini_base_url, settings.gemini_api_key, "CHAT_GEMINI_API_KEY")
        case "openrouter":
            key = settings.openrouter_api_key
            return Place(name, model, settings.openrouter_base_url, key, "CHAT_OPENROUTER_API_KEY")
    url, key, key_setting = "", Secret(""), "CHAT_LLM_API_KEY"
    if name == _addressee(settings):
        url, key = settings.llm_base_url, settings.llm_api_key
    if name == "openai":
        url = url or OPENAI_URL
        if not key:
            key, key_setting = settings.openai_api_key, "CHAT_OPENAI_API_KEY"
    return Place(name, model, url, key, key_setting)


def _faults(settings: Settings, place: Place, given: str) -> Iterator[str]:
    name = place.provider
    if name not in OWN_DEFAULTS:
        known = litellm_providers()
        if not known:
            yield f"{given}: is not one of {', '.join(OWN_DEFAULTS)}; others need litellm: pip install 'chat-grpc[litellm]'"
        elif name not in known:
            yield f"{given}: is neither one of {', '.join(OWN_DEFAULTS)} nor a provider that litellm knows"
        return
    example = {
        "gemini": "" if place.api_key else "CHAT_GEMINI_API_KEY=AIza...",
        "openrouter": "" if place.api_key else "CHAT_OPENROUTER_API_KEY=sk-or-...",
        "openai": "" if place.api_key or place.base_url != OPENAI_URL else "CHAT_OPENAI_API_KEY=sk-...",
        "local": "" if place.base_url else "CHAT_LLM_BASE_URL=http://127.0.0.1:8000/v1",
        "extractive": "",
    }[name]
    if not example:
        return
    addressee = _addressee(settings)
    if name == "local" and settings.llm_base_url and addressee != name:
        yield f"{given}: has no address, since CHAT_LLM_BASE_URL is for {addressee}, which is named before it"
    else:
        yield f"{given}: needs another setting beside it, for example {example}"
