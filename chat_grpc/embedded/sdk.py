"""The only door to memvid-sdk, shut against the network."""

from __future__ import annotations

import importlib
import os
from typing import Any

ONLINE = ("MEMVID_API_KEY", "MEMVID_API_URL", "MEMVID_DASHBOARD_URL")
"""With these in the environment every query would be reported over the network."""


def load() -> Any:
    """Import memvid_sdk so that nothing it does leaves this machine.

    It is the bindings of a Rust core, 0.1 s and 30 MB to import, without type
    information: that is why it comes as Any, and late. Its telemetry is on
    unless the environment says no before the import.
    """
    os.environ["MEMVID_TELEMETRY"] = "0"
    os.environ["MEMVID_OFFLINE"] = "1"
    for name in ONLINE:
        os.environ.pop(name, None)
    return importlib.import_module("memvid_sdk")
