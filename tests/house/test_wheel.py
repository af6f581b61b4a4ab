"""The wheel, installed where there is no checkout: it holds all that the program reads."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Awaitable
from pathlib import Path

import grpc
import pytest
from google.api.httpbody_pb2 import HttpBody

from chat_grpc._gen.gateway.v1 import docs_pb2, docs_pb2_grpc, web_pb2, web_pb2_grpc
from tests.support.process import ROOT, chat_grpc, free_port, serving

pytestmark = pytest.mark.e2e

READ = ("gateway/page", "gateway/docs_pages", "gateway/openapi.json", "envoy", "docs")
PICTURES = "docs/screenshots"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel in it, installed; what it depends on is where it always is."""
    folder = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--target", str(folder), str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def tracked(*paths: str) -> set[str]:
    """Return the files of the checkout below these paths, without those that nobody would commit."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", *paths]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode()
    return {name for name in listed.split("\0") if name and (ROOT / name).is_file()}


def test_it_holds_every_file_that_the_program_reads(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    read = {name for name in tracked(*READ) if not name.startswith(PICTURES)}
    in_data = ("envoy/", "docs/")
    expected = {f"chat_grpc/_data/{name}" if name.startswith(in_data) else name for name in read}
    assert "gateway/page/index.html" in expected
    assert expected - held == set()
    assert [name for name in held if "screenshots" in name or name.startswith(("tests/", "benchmarks/"))] == []


def test_it_carries_the_licences_of_what_it_carries(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        (metadata,) = (opened.read(name).decode() for name in opened.namelist() if name.endswith("/METADATA"))
        licences = {
            name.partition("/licenses/")[2]: opened.read(name) for name in opened.namelist() if "/licenses/" in name
        }
    wanted = {"LICENSE"} | {name for name in tracked("gateway") if name.endswith(("LICENSE.txt", "NOTICE.txt"))}
    assert any("swagger" in name for name in wanted)
    assert any("redoc" in name for name in wanted)
    assert licences == {name: (ROOT / name).read_bytes() for name in wanted}
    assert all(f"License-File: {name}\n" in metadata for name in wanted)


def test_the_installed_packages_are_what_runs(installed: Path, tmp_path: Path) -> None:
    asked = "import chat_grpc, gateway; print(chat_grpc.__file__, gateway.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", asked],
        cwd=tmp_path,
        env={"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert [Path(file).parent.parent for file in done.stdout.split()] == [installed, installed]


async def test_the_installed_server_answers_its_pages(installed: Path, tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    settings = {
        "PYTHONPATH": str(installed),
        "CHAT_GRPC_PORT": address.rpartition(":")[2],
        "CHAT_LLM_PROVIDER": "extractive",
        "CHAT_MEMVID_GRPC_URL": f"127.0.0.1:{free_port()}",  # nobody is there, and nothing here needs it
    }
    async with chat_grpc("serve", folder=tmp_path, **settings), grpc.aio.insecure_channel(address) as channel:
        await serving(address)
        web, docs = web_pb2_grpc.WebServiceStub(channel), docs_pb2_grpc.DocsServiceStub(channel)
        asked: dict[str, Awaitable[HttpBody]] = {
            "page/index.html": web.GetIndex(web_pb2.GetIndexRequest(), metadata=(("accept", "text/html"),)),
            "page/style.css": web.GetAsset(web_pb2.GetAssetRequest(name="style.css")),
            "docs_pages/swagger.html": docs.GetSwaggerPage(docs_pb2.GetSwaggerPageRequest()),
            "docs_pages/vendor/swagger-ui.js": docs.GetDocsAsset(docs_pb2.GetDocsAssetRequest(name="swagger-ui.js")),
            "docs_pages/redoc.html": docs.GetRedocPage(docs_pb2.GetRedocPageRequest()),
            "openapi.json": docs.GetOpenApi(docs_pb2.GetOpenApiRequest()),
        }
        for file, call in asked.items():
            assert (await call).data == (ROOT / "gateway" / file).read_bytes(), file
