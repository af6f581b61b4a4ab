"""The one table from errors to HTTP, and the bounds of what travels in a header."""

from __future__ import annotations

import json
from typing import Any

import pytest

from chat_grpc import errors
from chat_grpc.rpc.errors import CODES, HttpError, to_status
from chat_grpc.rpc.interceptor import ErrorInterceptor
from chat_grpc.rpc.lifecycle import InFlight
from gateway.errors import STATUSES, rest_body

MODEL = {"provider": "openai", "stage": "stream"}
EXPECTED: dict[type[errors.ChatError], int] = {
    errors.ChatError: 500,
    errors.InvalidRequest: 400,
    errors.NotFound: 404,
    errors.Forbidden: 403,
    errors.Conflict: 409,
    errors.TooManyRequests: 429,
    errors.Unavailable: 503,
    errors.Draining: 503,
    errors.StorageUnavailable: 503,
    errors.RetrievalUnavailable: 503,
    errors.ModelError: 503,
    errors.ModelUnavailable: 503,
    errors.ModelBroke: 502,
    errors.ModelTimeout: 504,
}


def made(kind: type[errors.ChatError]) -> errors.ChatError:
    if kind is errors.InvalidRequest:
        return errors.InvalidRequest([errors.Violation("message", "must not be empty")])
    if kind is errors.Draining:
        return errors.Draining()
    if issubclass(kind, errors.ModelError):
        return kind("the model failed", provider=MODEL["provider"], stage=MODEL["stage"])
    return kind("it failed")


def trailers(error: errors.ChatError) -> dict[str, Any]:
    return dict(to_status(error, "mine", rest_body).trailers)


@pytest.mark.parametrize("kind", EXPECTED, ids=lambda kind: kind.__name__)
def test_each_error_has_its_http_status_and_the_one_form(kind: type[errors.ChatError]) -> None:
    error = made(kind)
    told = trailers(error)
    body = json.loads(told["x-error-body"])

    assert told["x-http-status"] == str(EXPECTED[kind])
    assert body["detail"] == body["message"] == error.message
    assert (body["error"], body["code"], body["request_id"]) == (error.reason, CODES[kind].value[0], "mine")
    assert ("retry-after" in told) == any("retry_delay" in detail for detail in body["details"])


def test_every_code_that_an_error_can_have_has_a_status() -> None:
    assert {code.value[0] for code in CODES.values()} <= set(STATUSES)


@pytest.mark.parametrize("text", ["x" * 5_000, "\U0001f600" * 5_000, '"\\' * 3_000], ids=["ascii", "emoji", "quotes"])
def test_callers_cannot_make_the_headers_too_large(text: str) -> None:
    """What breaks a rule may be named after what the caller sent; 8 KiB is what most take of headers."""
    violations = [errors.Violation(text, text) for _ in range(100)]
    told = trailers(errors.InvalidRequest(violations))

    assert len(told["x-error-body"]) < 16_000
    assert len(told["grpc-status-details-bin"]) < 8_000
    assert len(json.loads(told["x-error-body"])["details"][2]["field_violations"]) == 8


def test_what_travels_in_a_header_is_printable_ascii() -> None:
    text = "é\n\r\t\x00\x7f\u2028\U0001f600"
    body = trailers(errors.NotFound(text))["x-error-body"]

    assert body.isascii()
    assert body.isprintable()
    assert json.loads(body)["message"] == text


def test_the_longest_beginning_of_a_methods_name_chooses_the_form() -> None:
    def short(*_: Any) -> HttpError:
        return HttpError(500, "{}")

    def long(*_: Any) -> HttpError:
        return HttpError(500, "[]")

    for bodies in (
        {"/gateway.v1.": short, "/gateway.v1.OpenAIService/": long},
        {"/gateway.v1.OpenAIService/": long, "/gateway.v1.": short},
    ):
        choose = ErrorInterceptor(InFlight(), bodies)._body_of
        assert choose("/gateway.v1.OpenAIService/ListModels") is long
        assert choose("/gateway.v1.GatewayService/Chat") is short
        assert choose("/chat.v1.ChatService/Chat") is None
