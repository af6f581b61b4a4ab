"""Building those who write the answers, from the settings."""

from __future__ import annotations

from chat_grpc.llm import Provider
from chat_grpc.llm.chain import Chain, Link
from chat_grpc.llm.extractive import Extractive
from chat_grpc.llm.lineup import OWN_DEFAULTS, Place, lineup
from chat_grpc.llm.openai_wire import OpenAIWire
from chat_grpc.llm.watchdog import TimeLimits
from chat_grpc.settings import Settings


def choose(settings: Settings) -> Chain:
    """Return the chain of providers that the settings name; see llm.lineup for its order."""
    places = lineup(settings)
    providers: dict[str, Provider] = {}
    for place in places:
        if place.provider not in providers:
            further = settings.llm_models if place is places[0] else ""
            models = frozenset(filter(None, (model.strip() for model in further.split(","))))
            providers[place.provider] = _build(settings, place, places[0], models)
    return Chain(
        [Link(providers[place.provider], place.model) for place in places],
        retries=settings.llm_retries,
        breaker_failures=settings.llm_breaker_failures,
        breaker_seconds=settings.llm_breaker_seconds,
    )


def _build(settings: Settings, place: Place, first: Place, models: frozenset[str]) -> Provider:
    if place.provider == "extractive":
        return Extractive(standing_in=place is not first)
    limits = TimeLimits(settings.llm_first_token_timeout, settings.llm_idle_timeout, settings.llm_timeout)
    if place.provider in OWN_DEFAULTS:
        return OpenAIWire(
            place.provider,
            base_url=place.base_url,
            api_key=place.api_key,
            key_setting=place.key_setting,
            default_model=place.model,
            models=models,
            limits=limits,
        )
    from chat_grpc.llm.litellm_provider import LiteLLM

    return LiteLLM(
        place.provider,
        base_url=place.base_url,
        api_key=place.api_key,
        default_model=place.model,
        models=models,
        limits=limits,
    )
