"""The whole of it as a newcomer runs it: memvid, the server, Envoy and a local model, all real processes."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chat_grpc._gen.chat.v1 import chat_pb2, chat_pb2_grpc, history_pb2, history_pb2_grpc, types_pb2
from tests.support.process import Process, chat_grpc, free_port
from tests.support.service import failure_of

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

QUESTION = "How do I keep messages in DynamoDB?"
HANG = 90


@dataclass
class Stack:
    """A running `chat-grpc up --llm local`."""

    process: Process
    folder: Path
    settings: dict[str, str]

    @property
    def http(self) -> str:
        return f"http://localhost:{self.settings['CHAT_HTTP_PORT']}"

    @property
    def grpc(self) -> str:
        return f"localhost:{self.settings['CHAT_GRPC_PORT']}"

    def part(self, command: str) -> psutil.Process:
        """Return the process of a part."""
        for child in psutil.Process(self.process.inner.pid).children(recursive=True):
            if command in child.cmdline()[1:]:
                return child
        raise AssertionError(f"{command} is not running")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    folder = tmp_path_factory.mktemp("stack")
    settings = {
        "CHAT_MEMVID_GRPC_URL": f"localhost:{free_port()}",
        "CHAT_GRPC_PORT": str(free_port()),
        "CHAT_HTTP_PORT": str(free_port()),
    }
    async with chat_grpc("up", "--llm", "local", folder=folder, **settings) as process:
        await process.printed("chat-grpc is running", seconds=HANG)
        yield Stack(process, folder, settings)
        process.send(signal.SIGINT)
        assert await process.wait(HANG) == 0, process.output


async def run(*command: str, stdin: str = "") -> tuple[int, str]:
    """Run a command line tool to its end."""
    found = shutil.which(command[0], path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert found, f"{command[0]} is not installed"
    process = await asyncio.create_subprocess_exec(
        found,
        *command[1:],
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(HANG):
        output, _ = await process.communicate(stdin.encode())
    return process.returncode or 0, output.decode()


async def post(stack: Stack, body: dict[str, Any]) -> AsyncIterator[tuple[float, str]]:
    """POST to the chat route with curl and yield each line of the answer with the time it came."""
    process = await asyncio.create_subprocess_exec(
        "curl", "-sN", f"{stack.http}/api/v1/chat", "-H", "content-type: application/json", "-d", json.dumps(body),
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    async with asyncio.timeout(HANG):
        while line := await process.stdout.readline():
            yield time.monotonic(), line.decode().rstrip("\n")
        await process.wait()


async def completed(stack: Stack, message: str = QUESTION) -> chat_pb2.Completed:
    """Ask and return the last event."""
    async with grpc.aio.insecure_channel(stack.grpc) as channel:
        events = [event async for event in chat_pb2_grpc.ChatServiceStub(channel).Chat(
            chat_pb2.ChatRequest(message=message, options=chat_pb2.ChatOptions(max_tokens=8)), timeout=HANG
        )]  # fmt: skip
    return events[-1].completed


async def test_curl_streams_retrieval_tokens_done(stack: Stack) -> None:
    lines = [line async for line in post(stack, {"message": QUESTION})]
    assert [line for _, line in lines[1::2]] == [""] * (len(lines) // 2), "each event is one line and an empty one"
    events = [(at, json.loads(line.removeprefix("data: "))) for at, line in lines[::2]]
    kinds = [event["type"] for _, event in events]
    assert kinds[0] == "retrieval"
    assert kinds[-2:] == ["stats", "done"]
    assert set(kinds[1:-2]) == {"token"}
    assert events[0][1]["chunks"] == 5
    assert "DynamoDB" in events[0][1]["passages"][0]["title"]
    assert events[-2][1]["tokens_used"] > 0
    tokens = [at for at, event in events if event["type"] == "token"]
    # The model writes on for as long as it takes; what it has written is here meanwhile.
    assert len(tokens) > 5
    assert len({round(at, 2) for at in tokens}) > 1


async def test_json_and_session(stack: Stack) -> None:
    body = {"message": "Where are messages kept, then?", "stream": False}
    first = json.loads("".join([line async for _, line in post(stack, body)]))
    assert first["message"] == first["content"] != ""
    assert first["model"] == "local/local"
    assert first["chunks_retrieved"] == 5
    assert first["cached"] is False
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", first["timestamp"])
    body = {"message": "And where else?", "stream": False, "session_id": first["session_id"]}
    second = json.loads("".join([line async for _, line in post(stack, body)]))
    assert second["session_id"] == first["session_id"]


async def test_trying_things_out_on_this_machine_meets_no_rate_limit(stack: Stack) -> None:
    body = {"message": QUESTION, "stream": False}
    answers = [json.loads("".join([line async for _, line in post(stack, body)])) for _ in range(15)]
    assert all(answer.get("message") and "code" not in answer for answer in answers)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"message": ""}, 400),
        ({"message": "x" * 2001}, 400),
        ({"message": "Hi", "session_id": "nope"}, 400),
        ({"message": "Hi", "session_id": "7d0f0f2e-55a5-4a0c-9a3c-5f1f6cf1a111"}, 404),
    ],
)
async def test_bad_input_over_rest(stack: Stack, body: dict[str, Any], status: int) -> None:
    _, output = await run(
        "curl", "-s", "-w", "\n%{http_code}", f"{stack.http}/api/v1/chat",
        "-H", "content-type: application/json", "-d", json.dumps(body),
    )  # fmt: skip
    text, _, code = output.rpartition("\n")
    assert int(code) == status, output
    assert json.loads(text)["message"]


async def test_grpcurl_lists_and_chats_by_reflection(stack: Stack) -> None:
    for address in (stack.grpc, stack.http.removeprefix("http://")):
        code, listed = await run("grpcurl", "-plaintext", address, "list")
        assert code == 0, listed
        assert {"chat.v1.ChatService", "chat.v1.HistoryService", "grpc.health.v1.Health"} <= set(listed.split())
    request = json.dumps({"message": QUESTION, "options": {"max_tokens": 8}})
    code, output = await run("grpcurl", "-plaintext", "-d", request, stack.grpc, "chat.v1.ChatService/Chat")
    assert code == 0, output
    for event in ("started", "retrieval", "delta", "completed"):
        assert f'"{event}"' in output


async def test_command_line(stack: Stack) -> None:
    address = ("--address", stack.grpc)
    code, output = await run(sys.executable, "-m", "chat_grpc", "chat", QUESTION, "--user", "ada", *address)
    assert code == 0, output
    code, output = await run(sys.executable, "-m", "chat_grpc", "history", "--user", "ada", "--json", *address)
    assert code == 0, output
    assert QUESTION in output
    code, output = await run(sys.executable, "-m", "chat_grpc", "health", *address)
    assert code == 0, output


async def test_killing_memvid_degrades_and_its_return_heals(stack: Stack) -> None:
    assert list((await completed(stack)).degraded) == []
    server = stack.part("serve").pid
    stack.part("memvid").send_signal(signal.SIGKILL)
    async with asyncio.timeout(HANG):
        while list((await completed(stack)).degraded) != [types_pb2.COMPONENT_RETRIEVAL]:
            await asyncio.sleep(0.1)
        while list((await completed(stack)).degraded):
            await asyncio.sleep(0.2)
    assert stack.part("serve").pid == server


async def test_kill_9_in_the_middle_of_a_stream_is_told_by_the_history(stack: Stack) -> None:
    options = chat_pb2.ChatOptions(max_tokens=2000)
    request = chat_pb2.ChatRequest(message="Write a very long story.", user_id="grace", options=options)
    async with grpc.aio.insecure_channel(stack.grpc) as channel:
        call = chat_pb2_grpc.ChatServiceStub(channel).Chat(request, timeout=HANG)
        async for event in call:
            if event.HasField("delta"):
                break
        stack.part("serve").send_signal(signal.SIGKILL)
        failure = await failure_of(call)
    assert failure.code is grpc.StatusCode.UNAVAILABLE
    assert not any(event.HasField("completed") for event in failure.events)
    async with grpc.aio.insecure_channel(stack.grpc) as channel:
        await health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(), timeout=HANG, wait_for_ready=True
        )
        page = await history_pb2_grpc.HistoryServiceStub(channel).ListMessages(
            history_pb2.ListMessagesRequest(user_id="grace")
        )
    [message] = page.messages
    assert message.message == "Write a very long story."
    assert message.status == history_pb2.Message.STATUS_INTERRUPTED
    assert message.error_reason == "SERVER_DIED"
