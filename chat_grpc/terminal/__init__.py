"""The commands that people type: chat, history, health."""

from __future__ import annotations

import os

# grpc's core writes lines of its own about connections to stderr; what people
# need to know of a failure, these commands say themselves.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
