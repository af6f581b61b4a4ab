"""The same redis-server as in tests/shared."""

from tests.shared.conftest import network, redis, redis_process

__all__ = ["network", "redis", "redis_process"]
