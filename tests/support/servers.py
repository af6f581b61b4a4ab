"""Three servers that are one service: real processes on one DynamoDB table and one Redis, behind a real Envoy."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from tests.gateway.edges import running_edge
from tests.support.dynamodb import dynamodb_local, moto
from tests.support.memvid import Memvid
from tests.support.process import Process, chat_grpc, free_port, serving
from tests.support.redis import running_redis
from tests.support.upstream import Upstream

COUNT = 3
AMAZON = {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none", "AWS_EC2_METADATA_DISABLED": "true"}


@dataclass
class Server:
    """One of them."""

    process: Process
    address: str

    def calls(self, method: str) -> list[dict[str, Any]]:
        """Return the lines of its log about calls of a method that have ended."""
        lines = [json.loads(line) for line in self.process.output.splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == "call" and line["method"].endswith(f"/{method}")]


@dataclass
class Several:
    """All of them; ``http`` is a client of the edge, ``edge`` its address."""

    servers: list[Server]
    http: aiohttp.ClientSession
    edge: str


@asynccontextmanager
async def several_servers(folder: Path, model: Upstream, memory: Memvid, **environ: str) -> AsyncIterator[Several]:
    """Run them, with further settings by their variables' names."""
    async with AsyncExitStack() as stack:
        redis = stack.enter_context(running_redis(folder))
        has_java = shutil.which("java") and shutil.which("mvn")
        table = await stack.enter_async_context(dynamodb_local() if has_java else moto())
        servers = []
        for _ in range(COUNT):
            address = f"127.0.0.1:{free_port()}"
            settings = {
                "CHAT_GRPC_PORT": address.rpartition(":")[2],
                "CHAT_DATABASE_URL": f"dynamodb://chat?endpoint_url={table}&region=us-east-1&create=true",
                "CHAT_REDIS_URL": redis.url,
                "CHAT_LLM_PROVIDER": "local",
                "CHAT_LLM_BASE_URL": model.url,
                "CHAT_MEMVID_GRPC_URL": memory.address,
                "CHAT_RATE_LIMIT": "off",
                "CHAT_ADDRESS_RATE_LIMIT": "off",
                "CHAT_REST_RATE_LIMIT": "off",
                "CHAT_LOG_FORMAT": "json",
                **AMAZON,
                **environ,
            }
            process = await stack.enter_async_context(chat_grpc("serve", folder=folder, **settings))
            await serving(address, "chat.v1.ChatService")
            servers.append(Server(process, address))
        upstreams = ",".join(server.address for server in servers)
        running = await stack.enter_async_context(running_edge(1, folder, grpc_upstreams=upstreams))
        http = await stack.enter_async_context(
            aiohttp.ClientSession(
                running.url, timeout=aiohttp.ClientTimeout(120), connector=aiohttp.TCPConnector(limit=0)
            )
        )
        yield Several(servers, http, f"127.0.0.1:{running.port}")
