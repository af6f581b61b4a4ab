"""Choosing who writes the answers, from the settings."""

from __future__ import annotations

from dataclasses import dataclass

from chat_grpc.llm import Provider
from chat_grpc.llm.extractive import Extractive
from chat_grpc.llm.openai_wire import OpenAIWire
from chat_grpc.llm.watchdog import TimeLimits
from chat_grpc.settings import Secret, Settings


@dataclass(frozen=True, slots=True)
class _Known:
    base_url: str
    model: str
    key: Secret
    key_setting: str


def choose(settings: Settings) -> Provider:
    """Return the provider that the settings name.

    Without a name: the first of gemini, openrouter and openai that has what it
    needs, else extractive.
    """
    known = {
        "gemini": _Known(
            "https://generativelanguage.googleapis.com/v1beta/openai",
            "gemini-flash-latest",
            settings.gemini_api_key,
            "CHAT_GEMINI_API_KEY",
        ),
        "openrouter": _Known(
            "https://openrouter.ai/api/v1",
            "nvidia/nemotron-nano-9b-v2:free",
            settings.openrouter_api_key,
            "CHAT_OPENROUTER_API_KEY",
        ),
        "openai": _Known("https://api.openai.com/v1", "gpt-5-mini", settings.llm_api_key, "CHAT_LLM_API_KEY"),
        "local": _Known(settings.llm_base_url, "local", settings.llm_api_key, "CHAT_LLM_API_KEY"),
    }
    name = settings.llm_provider or next((name for name in ("gemini", "openrouter", "openai") if known[name].key), "")
    if name not in known:
        return Extractive()
    chosen = known[name]
    return OpenAIWire(
        name,
        base_url=settings.llm_base_url or chosen.base_url,
        api_key=chosen.key,
        key_setting=chosen.key_setting,
        default_model=settings.llm_model or chosen.model,
        models=frozenset(filter(None, (model.strip() for model in settings.llm_models.split(",")))),
        limits=TimeLimits(settings.llm_first_token_timeout, settings.llm_idle_timeout, settings.llm_timeout),
    )
