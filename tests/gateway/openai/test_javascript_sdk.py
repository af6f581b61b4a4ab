"""The official JavaScript SDK holds a conversation with this service; js/conversation.js is the program."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from chat_grpc.conversation.system_prompt import BUILT_IN
from tests.gateway.openai.conftest import StartEdge
from tests.support.memvid import Memvid
from tests.support.upstream import Exchange, Upstream, saying

pytestmark = pytest.mark.e2e


async def answer(exchange: Exchange) -> None:
    """Do as the question says."""
    match exchange.messages[-1]["content"]:
        case "Fail early":
            await exchange.refuse(503)
        case "Fail late":
            await exchange.start()
            await exchange.text("half")
            await asyncio.sleep(0.05)
            exchange.close()
        case "Never end":
            await exchange.start()
            await exchange.text("on")
            await exchange.gone.wait()
        case question:
            await saying(f"[{question}", " indeed]")(exchange)


async def run(folder: Path, base_url: str) -> dict[str, Any]:
    """Run the program and return what it saw."""
    node = shutil.which("node")
    assert node is not None
    process = await asyncio.create_subprocess_exec(
        node,
        "conversation.js",
        base_url,
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(120):
            out, problems = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, problems.decode()
    seen: dict[str, Any] = json.loads(out)
    return seen


async def test_a_conversation(js_folder: Path, start_edge: StartEdge, model: Upstream, memory: Memvid) -> None:
    model.answer = answer
    async with start_edge(CHAT_LLM_RETRIES="0") as edge:
        seen = await run(js_folder, edge.base_url)
        endless = model.chats[-1]
        await asyncio.wait_for(endless.gone.wait(), 30)

    whole = seen["whole"]
    assert whole["choices"][0]["message"]["content"] == "[How do I keep messages? indeed]"
    assert whole["choices"][0]["finish_reason"] == "stop"
    assert whole["usage"] == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    assert [passage["title"] for passage in whole["chat_grpc"]["passages"]] == [title for title, _ in memory.passages]

    *written, counted = seen["chunks"]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in written) == "[And where? indeed]"
    assert written[-1]["choices"][0]["finish_reason"] == "stop"
    assert counted["choices"] == []
    assert counted["usage"]["total_tokens"] == 10
    assert seen["final"]["choices"][0]["message"]["content"] == "[Why? indeed]"

    third = model.chats[2].messages
    assert third[0]["content"].startswith(BUILT_IN)
    assert "Answer like a pirate." in third[0]["content"]
    assert memory.passages[0][1] in third[0]["content"]
    assert [(said["role"], said["content"]) for said in third[1:]] == [
        ("user", "How do I keep messages?"),
        ("assistant", "[How do I keep messages? indeed]"),
        ("user", "And where?"),
        ("assistant", "[And where? indeed]"),
        ("user", "Why?"),
    ]

    assert seen["models"] == ["test-model"]
    assert seen["model"] == "local/test-model"
    invalid = {"isAPIError": True, "type": "invalid_request_error"}
    assert seen["refused"] == {
        **invalid,
        "kind": "BadRequestError",
        "status": 400,
        "code": "unsupported_parameter",
        "param": "n",
    }
    assert seen["unknown"] == {
        **invalid,
        "kind": "NotFoundError",
        "status": 404,
        "code": "model_not_found",
        "param": "model",
    }
    broken = {"isAPIError": True, "type": "server_error", "param": None}
    assert seen["early"] == {**broken, "kind": "InternalServerError", "status": 503, "code": "model_unavailable"}
    assert seen["late"] == {**broken, "kind": "APIError", "code": "model_cut"}
    assert seen["partial"] == "half"
