"""The OpenAPI document of gateway.v1, made from its descriptors alone."""

from __future__ import annotations

from openapi.document import render

__all__ = ["render"]
