from __future__ import annotations

import json
import signal
import socket
import urllib.request
from pathlib import Path

import pytest

from chat_grpc.embedded import llama, probes
from tests.embedded.processes import start


@pytest.mark.e2e
def test_the_packaged_model_speaks_the_openai_wire_format() -> None:
    port = probes.free_port()
    with start("llama", "--port", str(port)) as process:
        process.wait_for("serving")
        base = f"http://127.0.0.1:{port}"
        with urllib.request.urlopen(f"{base}/health") as answer:  # noqa: S310 (our own http URL)
            assert json.load(answer) == {"status": "ok"}
        with urllib.request.urlopen(f"{base}/v1/models") as answer:  # noqa: S310 (our own http URL)
            assert [model["id"] for model in json.load(answer)["data"]] == ["smollm2-135m-instruct"]
        body = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 4, "stream": True}
        request = urllib.request.Request(  # noqa: S310 (our own http URL)
            f"{base}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:  # noqa: S310 (our own http URL)
            events = [line[6:] for line in answer.read().decode().splitlines() if line.startswith("data: ")]
        assert events[-1] == "[DONE]"
        pieces = [choice["delta"].get("content") or "" for e in events[:-1] for choice in json.loads(e)["choices"]]
        assert "".join(pieces)
        assert process.end(signal.SIGTERM) == 0
        assert not [line for line in process.lines if not line.startswith("{")], "llama.cpp must be quiet"


@pytest.mark.e2e
def test_a_file_is_named_by_its_stem_and_ctrl_c_ends_it(tmp_path: Path) -> None:
    packaged = llama.packaged_model()
    assert packaged is not None
    model = tmp_path / "my-model.gguf"
    model.symlink_to(packaged)
    port = probes.free_port()
    with start("llama", "--model", str(model), "--port", str(port)) as process:
        process.wait_for("serving")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models") as answer:
            assert [entry["id"] for entry in json.load(answer)["data"]] == ["my-model"]
        assert process.end(signal.SIGINT) == 0


def test_faults_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "model.gguf"
    text.write_text("not a model")
    assert llama.run(text, "127.0.0.1", probes.free_port()) == 1
    assert "model.gguf is not a GGUF file" in capsys.readouterr().err
    assert llama.run(tmp_path / "absent.gguf", "127.0.0.1", probes.free_port()) == 1
    assert "absent.gguf can't be read" in capsys.readouterr().err
    text.write_bytes(b"GGUF\x03\x00\x00\x00")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert llama.run(text, "127.0.0.1", port) == 1
    assert f"port {port} is taken" in capsys.readouterr().err


def test_without_the_package_it_says_how_to_get_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama, "PACKAGE", "a_package_that_nobody_installs")
    assert llama.packaged_model() is None
    assert llama.run(None, "127.0.0.1", probes.free_port()) == 1
    assert "run `make local-model`, or pass --model FILE.gguf" in capsys.readouterr().err


@pytest.mark.e2e
def test_a_damaged_file_is_one_sentence(tmp_path: Path) -> None:
    model = tmp_path / "damaged.gguf"
    model.write_bytes(b"GGUF" + bytes(1000))
    with start("llama", "--model", str(model), "--port", str(probes.free_port())) as process:
        assert process.wait() == 1
        # llama.cpp says its own part too, from a thread of its own.
        assert any("can't serve" in line and "damaged.gguf" in line for line in process.lines)
