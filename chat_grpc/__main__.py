"""``python -m chat_grpc`` is ``chat-grpc``."""

from __future__ import annotations

import sys

from chat_grpc.cli import main

if __name__ == "__main__":
    sys.exit(main())
