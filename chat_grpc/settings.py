"""Every setting, read from the environment once at start, all faults reported together.

msgspec converts the values. pydantic-settings would do the same, but importing
it takes a third of a second, a third of what a start may take.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import re
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, unquote

import msgspec
from msgspec import Meta

from chat_grpc.auth import rules
from chat_grpc.auth.rules import EXAMPLE_SECRET

PREFIX = "CHAT_"
MIN_SECRET = 16


class Secret:
    """A text that shows itself only when asked to; ``repr`` and ``str`` hide it."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def __bool__(self) -> bool:
        return bool(self._text)

    def __repr__(self) -> str:
        return "Secret('***')" if self._text else "Secret('')"

    def reveal(self) -> str:
        """Return the text itself."""
        return self._text


class SecretUrl(Secret):
    """An address that may hold a password."""

    @property
    def password(self) -> str:
        """Its password, which stands before an @ or in its query; "" if it has none."""
        return _password_of(self._text)


IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class Networks:
    """Networks, in the form "127.0.0.0/8,::1"; "none" holds no address.

    Raises:
        ValueError: the text is not of that form.
    """

    RULE = "must be IP addresses and networks with commas between them, or none"
    __slots__ = ("_holds", "_text")

    def __init__(self, text: str) -> None:
        self._text = text
        listed = [] if text == "none" else text.split(",")
        networks = tuple(ipaddress.ip_network(item.strip()) for item in listed)
        # Every call asks, nearly always for the same few.
        self._holds = lru_cache(8_192)(lambda address: any(address in network for network in networks))

    def __contains__(self, address: IPAddress) -> bool:
        return self._holds(address)

    def __str__(self) -> str:
        return self._text


class SettingsError(Exception):
    """Settings are faulty; the text names every one of them, what was wrong and an example that works."""

    def __init__(self, faults: list[str]) -> None:
        self.faults = faults
        word = "setting is" if len(faults) == 1 else "settings are"
        super().__init__(f"{len(faults)} {word} faulty:\n" + "\n".join(f"  {fault}" for fault in faults))


def setting(default: Any, help: str, *, example: str, aliases: tuple[str, ...] = ()) -> Any:  # noqa: A002 (argparse's word)
    """Declare a setting: its default, what it is for, a value that works, other names for it."""
    return dataclasses.field(default=default, metadata={"help": help, "example": example, "aliases": aliases})


Port = Annotated[int, Meta(ge=1, le=65535)]
Seconds = Annotated[float, Meta(gt=0, le=86400)]
Host = Annotated[str, Meta(pattern=r"^[A-Za-z0-9.:_-]+$")]
Target = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._:\[\]-]+:[0-9]{1,5}$")]
Targets = Annotated[
    str,
    Meta(
        pattern=r"^([A-Za-z0-9._:\[\]-]+:[0-9]{1,5}(\s*,\s*[A-Za-z0-9._:\[\]-]+:[0-9]{1,5})*)?$",
        description="addresses of the form host:port, comma-separated",
    ),
]
HttpUrl = Annotated[str, Meta(pattern=r"^(https?://[^\s/]+[^\s]*)?$")]
_RATE = r"[1-9][0-9]{0,6}/(second|minute|hour|day)"
RateText = Annotated[str, Meta(pattern=f"^({_RATE}|off)$", description="such as 60/minute, 5/second or off")]
MinuteRateText = Annotated[
    str, Meta(pattern=f"^({_RATE}|[1-9][0-9]{{0,6}}|off)$", description="such as 10 (a minute), 5/second or off")
]
ProviderName = Annotated[str, Meta(pattern=r"^([a-z0-9][a-z0-9_.-]*)?$", description="a provider's name")]
FallbackNames = Annotated[
    str,
    Meta(
        pattern=r"^([a-z0-9][a-z0-9_.-]*/[^\s,]+(\s*,\s*[a-z0-9][a-z0-9_.-]*/[^\s,]+)*)?$",
        description="pairs of provider/model, comma-separated",
    ),
]
_ORIGIN = r"https?://[A-Za-z0-9.:\[\]-]+"
Origins = Annotated[
    str,
    Meta(
        pattern=rf"^({_ORIGIN}(\s*,\s*{_ORIGIN})*)?$",
        description="origins (scheme, host and port, without a path), comma-separated",
    ),
]
DatabaseUrl = Annotated[
    str,
    Meta(
        pattern=r"^(sqlite(\+aiosqlite)?:///.+|dynamodb://\S+)$",
        description="a SQLite file, or a DynamoDB table such as dynamodb://table?region=us-east-1",
    ),
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """The settings of every process. ``load`` reads them from the environment."""

    llm_provider: ProviderName = setting(
        "",
        "who writes the answers: gemini, openrouter, openai, local, extractive, or any provider that litellm knows; "
        "unset: the first of gemini, openrouter and openai that has a key, else extractive",
        example="gemini",
    )
    llm_model: str = setting(
        "", "the default model; unset: the provider's", aliases=("LLM_MODEL",), example="gpt-5-mini"
    )
    llm_models: str = setting("", "further models that requests may name, comma-separated", example="gpt-5,gpt-5-nano")
    llm_fallbacks: FallbackNames = setting(
        "",
        "who is asked when the provider fails, as provider/model, comma-separated, in this order",
        example="openrouter/openai/gpt-5-mini,extractive/quotes",
    )
    llm_fallback_extractive: bool = setting(
        False,  # noqa: FBT003 (it is the default of the field it stands in)
        "whether passages are quoted when every provider fails: true or false",
        example="true",
    )
    llm_retries: Annotated[int, Meta(ge=0, le=10)] = setting(
        2, "how often a provider that fails for a moment is asked again before the next one is", example="2"
    )
    llm_breaker_failures: Annotated[int, Meta(ge=1, le=1000)] = setting(
        5, "failures in a row after which a provider is left alone", example="5"
    )
    llm_breaker_seconds: Seconds = setting(15.0, "seconds for which it is left alone", example="15")
    llm_base_url: HttpUrl = setting(
        "",
        "where the provider is found; of those named by llm_provider and then llm_fallbacks it is for the first "
        "one other than gemini and openrouter",
        example="http://127.0.0.1:8000/v1",
    )
    llm_api_key: Secret = setting(Secret(""), "the key for llm_base_url; local servers need none", example="sk-...")
    openai_api_key: Secret = setting(
        Secret(""), "the key of OpenAI, where llm_api_key is another provider's", example="sk-..."
    )
    gemini_api_key: Secret = setting(Secret(""), "the key of Google's Gemini API", example="AIza...")
    gemini_base_url: HttpUrl = setting(
        "https://generativelanguage.googleapis.com/v1beta/openai",
        "where Gemini's OpenAI wire format is spoken",
        example="https://generativelanguage.googleapis.com/v1beta/openai",
    )
    openrouter_api_key: Secret = setting(
        Secret(""), "the key of OpenRouter", aliases=("OPENROUTER_API_KEY",), example="sk-or-..."
    )
    openrouter_base_url: HttpUrl = setting(
        "https://openrouter.ai/api/v1", "where OpenRouter is found", example="https://openrouter.ai/api/v1"
    )
    llm_max_tokens: Annotated[int, Meta(ge=1, le=8192)] = setting(
        1024, "how long an answer may get, in tokens, where the request does not say", example="1024"
    )
    llm_context: Annotated[int, Meta(ge=0, le=10_000_000)] = setting(
        0,
        "how many tokens the model reads at once, its answer included; "
        "0: what is known of the model, else 4096 for local and 8192 for others",
        example="32768",
    )
    llm_first_token_timeout: Seconds = setting(30.0, "seconds to the first piece of text", example="30")
    llm_idle_timeout: Seconds = setting(15.0, "seconds between two pieces of text", example="15")
    llm_timeout: Seconds = setting(300.0, "seconds in total for one answer", example="300")
    system_prompt: str = setting(
        "",
        "what the model is told to be; unset: what the memory's profile says",
        example="You are a patient librarian.",
    )
    session_ttl: Seconds = setting(
        1800.0, "seconds without a message after which a session ends", aliases=("SESSION_TTL",), example="1800"
    )
    session_turns: Annotated[int, Meta(ge=0, le=100)] = setting(
        10, "how many earlier messages of a session the model is given", example="10"
    )
    database_url: DatabaseUrl = setting(
        "sqlite+aiosqlite:///./data/chat.db", "where messages are kept", example="sqlite+aiosqlite:///./data/chat.db"
    )
    sqlite_synchronous: Literal["normal", "full"] = setting(
        "normal",
        "full: a message is on the disk before its answer begins; normal: a power cut may take the last ones",
        example="full",
    )
    retention_days: Annotated[float, Meta(ge=0, le=36_500)] = setting(
        0.0, "days after which messages are deleted; 0 keeps them for ever", example="90"
    )
    page_token_secret: Secret = setting(
        Secret(""),
        "what page tokens are signed with, at least 16 characters, the same on every server; "
        "unset: a secret that the database keeps",
        example="a long random text",
    )
    redis_url: SecretUrl = setting(
        SecretUrl(""),
        "the Redis that several servers share answers, sessions and limits in; unset: this server shares with nobody",
        example="redis://127.0.0.1:6379/0",
    )
    cache_seconds: Annotated[float, Meta(ge=0, le=2_592_000)] = setting(
        3600.0, "seconds for which the answer to an equal request is given again; 0 keeps none", example="3600"
    )
    cache_megabytes: Annotated[int, Meta(ge=1, le=65_536)] = setting(
        64, "how much memory kept answers may take, in MB", example="64"
    )
    memvid_grpc_url: Target = setting(
        "localhost:50051",
        "the memvid service, host:port; `chat-grpc memvid` listens there",
        aliases=("MEMVID_GRPC_URL",),
        example="localhost:50051",
    )
    memvid_timeout: Seconds = setting(2.0, "seconds that looking for passages may take", example="2")
    memvid_file: Annotated[str, Meta(min_length=1)] = setting(
        "./data/memory.mv2",
        "the file that `chat-grpc memvid` serves",
        aliases=("MEMVID_FILE_PATH",),
        example="./data/memory.mv2",
    )
    rate_limit: RateText = setting("60/minute", "how many messages one user may send", example="60/minute")
    address_rate_limit: RateText = setting(
        "600/minute", "how many messages one address may send, whatever users it names", example="600/minute"
    )
    rest_rate_limit: MinuteRateText = setting(
        "10/minute",
        "how many messages one address may send to POST /api/v1/chat",
        aliases=("RATE_LIMIT_PER_MINUTE",),
        example="10/minute",
    )
    max_streams_per_user: Annotated[int, Meta(ge=1, le=10_000)] = setting(
        8,
        "how many answers one user may receive at once; an address that names no user gets 8 times as many",
        example="8",
    )
    max_streams: Annotated[int, Meta(ge=1, le=100_000)] = setting(
        1000, "how many answers are written at once", example="1000"
    )
    queue_length: Annotated[int, Meta(ge=0, le=100_000)] = setting(
        100, "how many further messages wait for their turn", example="100"
    )
    queue_seconds: Annotated[float, Meta(ge=0, le=3600)] = setting(
        2.0, "seconds that each of them waits at most", example="2"
    )
    trusted_proxies: Networks = setting(
        Networks("127.0.0.0/8,::1"),
        "the proxies that are believed when they say whose call they pass on, comma-separated; none: nobody",
        example="127.0.0.0/8,::1",
    )
    guardrails: Literal["on", "all", "off"] = setting(
        "on",
        "which guardrails check messages and answers: on (those that refuse nothing innocent), all or off",
        example="all",
    )
    guardrails_skip: str = setting(
        "", "ids of guardrails to switch off, comma-separated", example="injection.reveal,leak.key"
    )
    auth: Literal["off", "jwt", "keys", "both"] = setting(
        "off",
        "how callers show who they are: off (they need not), jwt (tokens), keys (API keys) or both",
        example="jwt",
    )
    allow_anonymous: bool = setting(
        False,  # noqa: FBT003 (it is the default of the field it stands in)
        "whether other machines may call while CHAT_AUTH is off: true or false",
        example="true",
    )
    jwt_secret: Secret = setting(
        Secret(""), "the secret that tokens are signed with (HS256), at least 32 bytes", example=EXAMPLE_SECRET
    )
    jwt_jwks: str = setting(
        "",
        "the public keys that tokens are signed with (RS256, ES256), as a JWK set: a file, or an https address",
        example="https://login.example.org/.well-known/jwks.json",
    )
    jwt_issuer: str = setting(
        "",
        "whose tokens are taken (the claim iss); unset: anybody's who has the key",
        example="https://login.example.org",
    )
    jwt_audience: str = setting(
        "", "whom tokens must be meant for (the claim aud); unset: those that name nobody", example="chat-grpc"
    )
    jwt_user_claim: Annotated[str, Meta(min_length=1)] = setting(
        "sub", "the claim of a token that is its bearer's user_id", example="sub"
    )
    api_keys_file: str = setting(
        "", "the file of API keys, which `chat-grpc admin key add NAME` writes", example="./data/api-keys.jsonl"
    )
    token: Secret = setting(
        Secret(""), "the token or API key that the commands chat and history show to the server", example="cgk_..."
    )
    reflection: Literal["auto", "true", "false"] = setting(
        "auto",
        "whether clients may list and describe the services; auto: where only this machine can call",
        example="true",
    )
    channelz: bool = setting(
        False,  # noqa: FBT003 (it is the default of the field it stands in)
        "whether the server tells of its connections and calls (grpc.channelz.v1): true or false",
        example="true",
    )
    tls_cert_file: str = setting(
        "", "the server's certificate and its chain (PEM); unset: no TLS", example="./certs/server.pem"
    )
    tls_key_file: str = setting("", "its private key (PEM)", example="./certs/server.key")
    tls_client_ca_file: str = setting(
        "",
        "the authorities (PEM) of the certificates that clients must show; unset: none is asked for",
        example="./certs/clients.pem",
    )
    tls_ca_file: str = setting(
        "",
        "the authorities (PEM) that Envoy and the commands know the server's certificate by; unset: they speak no TLS to it",
        example="./certs/authority.pem",
    )
    grpc_host: Host = setting("127.0.0.1", "the address the server listens on", example="127.0.0.1")
    grpc_port: Port = setting(50052, "the port the server listens on", example="50052")
    workers: Annotated[int, Meta(ge=1, le=128)] = setting(
        1, "how many processes `chat-grpc serve` starts on that port", example="4"
    )
    grpc_upstreams: Targets = setting(
        "",
        "the servers that Envoy spreads calls over, host:port, comma-separated; unset: the one of grpc_host and grpc_port",
        example="10.0.0.11:50052,10.0.0.12:50052",
    )
    http_host: Host = setting("127.0.0.1", "the address Envoy listens on", example="127.0.0.1")
    http_port: Port = setting(3000, "the port Envoy listens on", aliases=("PORT",), example="3000")
    cors_origins: Origins = setting(
        "",
        "the origins whose pages may call the service from a browser, comma-separated; unset: none but its own",
        example="https://chat.example.org,http://localhost:5173",
    )
    drain_seconds: Annotated[float, Meta(ge=0, le=3600)] = setting(
        30.0, "seconds that open streams get to finish when the server stops", example="30"
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = setting(
        "INFO", "how much is logged: DEBUG, INFO, WARNING or ERROR", aliases=("LOG_LEVEL",), example="INFO"
    )
    log_format: Literal["json", "text"] = setting(
        "json", "json (one object a line) or text (for people)", example="text"
    )
    log_content: bool = setting(
        False,  # noqa: FBT003 (it is the default of the field it stands in)
        "whether the log holds the texts of messages and answers: true or false",
        example="true",
    )
    http_metrics: bool = setting(
        True,  # noqa: FBT003 (it is the default of the field it stands in)
        "whether Envoy serves GET /metrics: true or false",
        example="false",
    )
    otlp_endpoint: HttpUrl = setting(
        "",
        "the collector that traces are sent to, by OTLP over gRPC; unset: no traces are made",
        aliases=("OTEL_EXPORTER_OTLP_ENDPOINT",),
        example="http://127.0.0.1:4317",
    )


def load(environ: Mapping[str, str] = os.environ) -> Settings:
    """Read the settings. A variable that is empty counts as unset; the CHAT_ name goes before its aliases.

    Raises:
        SettingsError: naming every faulty setting.
    """
    values: dict[str, Any] = {}
    faults: list[str] = []
    hints = typing.get_type_hints(Settings, include_extras=True)
    for field in dataclasses.fields(Settings):
        name = next((name for name in names(field) if environ.get(name, "").strip()), None)
        if name is None:
            continue
        text = environ[name].strip()
        if hints[field.name] in (Secret, SecretUrl):
            values[field.name] = hints[field.name](text)
            continue
        if _is_choice(hints[field.name]) and field.name == "log_level":
            text = text.upper()
        try:
            # The hook makes the values of classes that msgspec does not know.
            values[field.name] = msgspec.convert(
                text, hints[field.name], strict=False, dec_hook=lambda kind, value: kind(value)
            )
        except msgspec.ValidationError:
            faults.append(
                f"{name}={text!r}: {_rule(hints[field.name])} ({field.metadata['help']}), "
                f"for example {name}={field.metadata['example']}"
            )
    if not faults:
        settings = Settings(**values)
        faults.extend(_contradictions(settings))
        if not faults:
            return settings
    raise SettingsError(faults)


def names(field: dataclasses.Field[Any]) -> Iterator[str]:
    """Yield the variables that set a field, the canonical one first."""
    yield PREFIX + field.name.upper()
    yield from field.metadata["aliases"]


def secrets(settings: Settings) -> list[str]:
    """Return every key and password that the settings hold, also those that stand in addresses."""
    values = [getattr(settings, field.name) for field in dataclasses.fields(Settings)]
    return [text for text in map(_secret_of, values) if text]


def _secret_of(value: object) -> str:
    match value:
        case SecretUrl():  # the rest of it is often written about
            return value.password
        case Secret():
            return value.reveal()
        case str():
            return _password_of(value)
    return ""


def _password_of(url: str) -> str:
    if "://" not in url:
        return ""
    address, _, query = url.partition("://")[2].partition("?")
    login, at, _ = address.partition("/")[0].rpartition("@")
    if at and (password := login.partition(":")[2]):
        return unquote(password)
    return dict(parse_qsl(query)).get("password", "")


def unknown(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Return the CHAT_ variables that are no setting: most likely misspelt."""
    known = {name for field in dataclasses.fields(Settings) for name in names(field)}
    return sorted(name for name in environ if name.startswith(PREFIX) and name not in known)


def _contradictions(settings: Settings) -> Iterator[str]:
    """Yield the faults that no single value has."""
    from chat_grpc.conversation.guardrails.table import RULES
    from chat_grpc.conversation.guardrails.table import unknown as unknown_rules
    from chat_grpc.llm.lineup import faults

    yield from faults(settings)
    for rule in unknown_rules(settings.guardrails_skip):
        yield f"CHAT_GUARDRAILS_SKIP: {rule!r} is no guardrail; those are {', '.join(RULES)}"
    if settings.database_url.startswith("dynamodb:"):
        from chat_grpc.storage.dynamodb.address import Address

        try:
            Address.parse(settings.database_url)
        except ValueError as error:
            yield f"CHAT_DATABASE_URL: {error}, for example dynamodb://chat?region=us-east-1"
    if settings.page_token_secret and len(settings.page_token_secret.reveal()) < MIN_SECRET:
        yield f"CHAT_PAGE_TOKEN_SECRET: must have at least {MIN_SECRET} characters; leave it unset to have one made"
    yield from rules.faults(settings)
    if settings.redis_url and not re.fullmatch(r"(rediss?|unix)://\S+", settings.redis_url.reveal()):
        # Without its value, which may hold a password.
        yield (
            "CHAT_REDIS_URL: must be an address of Redis (redis://, rediss:// or unix://), "
            "for example CHAT_REDIS_URL=redis://127.0.0.1:6379/0"
        )


def _is_choice(hint: Any) -> bool:
    return typing.get_origin(hint) is Literal


def _rule(hint: Any) -> str:
    """Say in words which values a type takes."""
    if _is_choice(hint):
        return "must be one of " + ", ".join(choice or "(unset)" for choice in typing.get_args(hint))
    if hint is Networks:
        return Networks.RULE
    kind, *metas = typing.get_args(hint) if typing.get_origin(hint) is Annotated else (hint,)
    word = {int: "a whole number", float: "a number", bool: "true or false"}.get(kind, "a text")
    parts = [f"must be {word}"]
    for meta in metas:
        for attribute, phrase in (("ge", "at least"), ("gt", "more than"), ("le", "at most")):
            bound = getattr(meta, attribute)
            if bound is not None:
                parts.append(f"{phrase} {bound}")
        if meta.pattern is not None:
            parts.append(meta.description or "of the form of the example")
    return " ".join(parts[:2]) + "".join(f", {part}" for part in parts[2:])
