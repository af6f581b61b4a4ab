"""chat, history and health as one-shot commands against the whole server."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import HANG_GUARD, Cli, clean_environment
from tests.support.fixtures import StartService
from tests.support.service import Service
from tests.support.upstream import Exchange, Upstream, saying


async def test_the_answer_and_nothing_else_is_on_stdout(cli: Cli, chat_service: Service) -> None:
    done = await cli("chat", "How do I keep messages?", "--address", chat_service.address)
    assert (done.code, done.stdout) == (0, "Hello there.\n")
    assert "0.90  Storage › DynamoDB" in done.stderr
    assert "session: " in done.stderr


async def test_no_passages(cli: Cli, chat_service: Service) -> None:
    done = await cli("chat", "How?", "--no-passages", "--address", chat_service.address)
    assert done.code == 0
    assert "Storage" not in done.stderr


async def test_the_question_from_stdin(cli: Cli, chat_service: Service, model: Upstream) -> None:
    done = await cli("chat", "-", "--address", chat_service.address, stdin="Why is\nthe sky blue?")
    assert done.code == 0
    assert "Why is\nthe sky blue?" in model.chats[-1].messages[-1]["content"]


async def test_the_address_comes_from_the_settings(cli: Cli, chat_service: Service) -> None:
    done = await cli("chat", "How?", CHAT_GRPC_PORT=chat_service.address.rpartition(":")[2])
    assert (done.code, done.stdout) == (0, "Hello there.\n")


async def test_a_text_that_ends_its_line_gets_no_second_end(cli: Cli, chat_service: Service, model: Upstream) -> None:
    model.answer = saying("a list:\n", "- one\n")
    assert (await cli("chat", "How?", "--address", chat_service.address)).stdout == "a list:\n- one\n"


async def test_markdown_is_left_as_it_is(cli: Cli, chat_service: Service, model: Upstream) -> None:
    model.answer = saying("**bold** [red]x[/red]")
    assert (await cli("chat", "How?", "--address", chat_service.address)).stdout == "**bold** [red]x[/red]\n"


async def test_notes_say_what_was_missing(cli: Cli, start: StartService, model: Upstream) -> None:
    model.answer = saying("cut", reason="length")
    async with start(CHAT_MEMVID_GRPC_URL="127.0.0.1:1") as service:
        done = await cli("chat", "How?", "--address", service.address)
    assert (done.code, done.stdout) == (0, "cut\n")
    assert "note: answered without: retrieval" in done.stderr
    assert "note: the answer was cut at its greatest length" in done.stderr


async def test_a_broken_rule(cli: Cli, chat_service: Service) -> None:
    done = await cli("chat", "How?", "--session", "nonsense", "--address", chat_service.address)
    assert (done.code, done.stdout) == (1, "")
    assert done.stderr.startswith("chat-grpc: session_id: ")
    assert done.stderr.count("\n") == 1


async def test_a_failing_model(cli: Cli, chat_service: Service, model: Upstream) -> None:
    model.answer = lambda exchange: exchange.refuse(503)
    done = await cli("chat", "How?", "--address", chat_service.address)
    assert (done.code, done.stdout) == (1, "")
    assert "MODEL_UNAVAILABLE" in done.stderr
    assert "; try again in 2 s" in done.stderr
    assert "Traceback" not in done.stderr


async def test_what_had_come_before_a_failure_stays(cli: Cli, chat_service: Service, model: Upstream) -> None:
    async def cut(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.text("half an ans")
        await asyncio.sleep(0.05)
        exchange.reset()

    model.answer = cut
    done = await cli("chat", "How?", "--address", chat_service.address)
    assert (done.code, done.stdout) == (1, "half an ans\n")


@pytest.mark.parametrize("command", [("chat", "How?"), ("chat",), ("history", "--user", "ada"), ("health",)])
async def test_nobody_there(cli: Cli, command: tuple[str, ...]) -> None:
    done = await cli(*command, "--address", "localhost:1")
    assert done.code == 1
    assert done.stderr == "chat-grpc: no chat server at localhost:1; start one with `make run`\n"


async def test_ctrl_c_ends_the_answer(chat_service: Service, model: Upstream, tmp_path: Path) -> None:
    hold = asyncio.Event()

    async def slow(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.text("one moment")
        await hold.wait()

    model.answer = slow
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "chat_grpc", "chat", "How?", "--address", chat_service.address),
        cwd=tmp_path,
        env=clean_environment(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    async with asyncio.timeout(HANG_GUARD):
        assert await process.stdout.readexactly(10) == b"one moment"  # it came while the answer was being written
        process.send_signal(signal.SIGINT)
        stdout, stderr = await process.communicate()
        assert process.returncode == 130
        assert stdout == b"\n"
        assert b"Traceback" not in stderr
        await model.chats[-1].gone.wait()


async def test_a_reader_that_leaves_is_no_error(chat_service: Service, model: Upstream, tmp_path: Path) -> None:
    async def endless(exchange: Exchange) -> None:
        await exchange.start()
        while True:
            await exchange.text("more\n")
            await asyncio.sleep(0.005)

    model.answer = endless
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "chat_grpc", "chat", "How?", "--address", chat_service.address),
        cwd=tmp_path,
        env=clean_environment(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    async with asyncio.timeout(HANG_GUARD):
        assert await process.stdout.readline() == b"more\n"
        process._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]  # as `head -1` does
        stderr = await process.stderr.read()
        await process.wait()
        await model.chats[-1].gone.wait()
    assert process.returncode == 0
    assert b"Traceback" not in stderr
    assert b"Broken" not in stderr


async def test_history_for_people(cli: Cli, chat_service: Service, model: Upstream) -> None:
    await chat_service.ask("The first?", user_id="ada")
    await chat_service.ask("The second?", user_id="ada")
    model.answer = lambda exchange: exchange.refuse(503)
    await chat_service.fail("The third?", user_id="ada")
    done = await cli("history", "--user", "ada", "--address", chat_service.address)
    assert done.code == 0
    assert done.stderr == ""
    third, second, first = done.stdout.strip().split("\n\n")
    assert "failed  MODEL_UNAVAILABLE" in third
    assert third.endswith("> The third?")
    assert "completed  local/test-model" in second
    assert first.endswith("> The first?\n  Hello there.")


async def test_history_for_programs(cli: Cli, chat_service: Service) -> None:
    for number in range(3):
        await chat_service.ask(f"Question {number}", user_id="ada")
    done = await cli("history", "--user", "ada", "--limit", "2", "--json", "--address", chat_service.address)
    messages = [json.loads(line) for line in done.stdout.splitlines()]
    assert [message["message"] for message in messages] == ["Question 2", "Question 1"]
    assert {message["status"] for message in messages} == {"STATUS_COMPLETED"}
    assert messages[0]["finish_reason"] == "FINISH_REASON_STOP"
    done = await cli("history", "--session", messages[0]["session_id"], "--json", "--address", chat_service.address)
    assert len(done.stdout.splitlines()) == 1


async def test_history_of_nobody_is_empty(cli: Cli, chat_service: Service) -> None:
    done = await cli("history", "--user", "nobody", "--address", chat_service.address)
    assert (done.code, done.stdout, done.stderr) == (0, "", "")


async def test_health(cli: Cli, chat_service: Service) -> None:
    done = await cli("health", "--address", chat_service.address)
    assert done.code == 0
    assert done.stdout.startswith("healthy ")
    assert "retrieval  healthy" in done.stdout
    done = await cli("health", "--json", "--address", chat_service.address)
    health = json.loads(done.stdout)
    assert (done.code, health["status"], health["memvid_frame_count"]) == (0, "STATUS_HEALTHY", 2)


async def test_health_degraded_is_still_serving(cli: Cli, start: StartService) -> None:
    async with start(CHAT_MEMVID_GRPC_URL="127.0.0.1:1") as service:
        done = await cli("health", "--address", service.address)
    assert done.code == 0
    assert done.stdout.startswith("degraded ")


async def test_health_unhealthy_fails(cli: Cli, start: StartService) -> None:
    async with start(CHAT_LLM_BASE_URL="http://127.0.0.1:1/v1") as service:
        done = await cli("health", "--address", service.address)
    assert done.stdout.startswith("unhealthy ")
    assert done.code == 1
