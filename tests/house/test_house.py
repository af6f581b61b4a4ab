"""What the project says of itself, compared with what it is."""

from __future__ import annotations

import dataclasses
import ipaddress
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from chat_grpc import settings
from chat_grpc.embedded import up

ROOT = Path(__file__).parents[2]
REQUIREMENTS = sorted((ROOT / "requirements").glob("*.txt"))


def pins(name: str) -> dict[str, str]:
    """Return the pinned version of each package in a requirements file."""
    text = (ROOT / "requirements" / name).read_text(encoding="utf-8")
    return dict(re.findall(r"^([a-z0-9-]+)==([^\s;\\]+)", text, re.MULTILINE))


def test_env_example_lists_exactly_the_settings() -> None:
    text = (ROOT / ".env.example").read_text(encoding="utf-8")
    names = [name for field in dataclasses.fields(settings.Settings) for name in [next(settings.names(field))]]
    assert re.findall(r"^#(\w+)=", text, re.MULTILINE) == names
    aliases = {alias for field in dataclasses.fields(settings.Settings) for alias in field.metadata["aliases"]}
    missing = [alias for alias in aliases if alias not in text]
    assert missing == []


def test_env_example_works_with_every_line_in_force() -> None:
    text = (ROOT / ".env.example").read_text(encoding="utf-8")
    environ = {name: value.strip('"') for name, value in re.findall(r"^#(\w+)=(.*)$", text, re.MULTILINE)}
    settings.load(environ)
    assert settings.unknown(environ) == []


def test_the_settings_that_the_documentation_names_exist() -> None:
    known = {name for field in dataclasses.fields(settings.Settings) for name in settings.names(field)}
    files = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "docker-compose.yml", ROOT / "Dockerfile"]
    named = {(file.name, name) for file in files for name in re.findall(r"CHAT_[A-Z_]+\b", file.read_text("utf-8"))}
    unknown = sorted((file, name) for file, name in named if name not in known and not name.endswith("_"))
    assert unknown == []


def test_procfile() -> None:
    from honcho.environ import parse_procfile

    parsed = parse_procfile((ROOT / "Procfile").read_text(encoding="utf-8")).processes
    assert (
        dict(parsed)
        == up.PROCESSES
        == {
            "memvid": "chat-grpc memvid",
            "server": "chat-grpc serve",
            "envoy": "chat-grpc envoy",
        }
    )


@pytest.mark.parametrize("file", REQUIREMENTS, ids=lambda file: file.name)
def test_requirements_hold_hashes_and_no_address(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert "://" not in text
    assert not re.search(
        r"^\s*-", re.sub(r"^ +--hash=sha256:[0-9a-f]{64}( \\)?$", "", text, flags=re.MULTILINE), re.MULTILINE
    )
    pinned = re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE)[1:]
    assert pinned
    assert [pin.split()[0] for pin in pinned if "==" not in pin or "--hash=sha256:" not in pin] == []


def test_developing_is_done_with_the_versions_that_run() -> None:
    run, dev = pins("run.txt"), pins("dev.txt")
    assert run.items() <= dev.items()


def test_every_dependency_is_pinned_and_explained() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    listed = [*project["dependencies"], *project["optional-dependencies"]["embedded"]]
    names = {re.split(r"[<>=; ]", requirement)[0] for requirement in listed}
    assert names <= pins("run.txt").keys()
    table = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Dependencies")[2]
    assert sorted(name for name in names if not re.search(rf"^\|.*\b{name}\b.*\|", table, re.MULTILINE)) == []


def test_compose_file_is_valid() -> None:
    tool = Path(sys.executable).with_name("check-jsonschema")
    done = subprocess.run(
        [tool, "--builtin-schema", "vendor.compose-spec", ROOT / "docker-compose.yml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_the_server_in_a_container_trusts_envoys_address_and_no_other() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    services, (pool,) = compose["services"], compose["networks"]["edge"]["ipam"]["config"]
    envoy = ipaddress.ip_address(services["envoy"]["networks"]["edge"]["ipv4_address"])
    given = {
        name: re.sub(r"\$\{\w+:-(.*)\}", r"\1", value)  # where .env does not say otherwise
        for name, value in services["server"]["environment"].items()
        if name.startswith("CHAT_")
    }
    trusted = settings.load(given).trusted_proxies
    assert "edge" in services["server"]["networks"]
    assert [address for address in ipaddress.ip_network(pool["subnet"]) if address in trusted] == [envoy]
    assert envoy not in ipaddress.ip_network(pool["ip_range"])


def test_no_file_names_a_package_index() -> None:
    # The names are put together here, so that this file does not name them either.
    hosts = ("py" + "pi.org", "python" + "hosted.org")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    found = [
        name
        for name in tracked.split("\0")
        if name and (ROOT / name).is_file() and any(host.encode() in (ROOT / name).read_bytes() for host in hosts)
    ]
    assert found == []


def test_make_help_lists_every_target() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^\.PHONY: (\S+)", text, re.MULTILINE))
    help_text = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"^  make ([a-z-]+) ", help_text, re.MULTILINE)) == targets


def test_a_python_that_is_too_old_is_told_so(tmp_path: Path) -> None:
    old = tmp_path / "python3.8"
    # What the Makefile asks for is run by this Python, which says that it is 3.8.
    old.write_text(
        f'#!/bin/sh\nshift\nexec {sys.executable} -c "import sys; sys.version_info = (3, 8, 0); $1"\n',
        encoding="utf-8",
    )
    old.chmod(0o755)
    make = ["make", "setup", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}"]
    done = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "chat-grpc runs on Python 3.11 to 3.13" in done.stderr
    assert "Traceback" not in done.stderr
