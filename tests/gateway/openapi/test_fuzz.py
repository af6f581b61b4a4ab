"""Schemathesis over the served document: what it makes up finds no fault.

`make fuzz` runs this for longer: FUZZ_EXAMPLES is how many requests it makes up
for each operation, FUZZ_SEED what it makes them from.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from tests.gateway.edges import Edge
from tests.support.upstream import Upstream, saying

pytestmark = pytest.mark.e2e

CONFIG = Path(__file__).with_name("schemathesis.toml")
EXAMPLES = os.environ.get("FUZZ_EXAMPLES", "320")
SEED = os.environ.get("FUZZ_SEED", "20240115")
AT_LEAST = 5_000


async def test_made_up_requests_find_no_fault(site: Edge, model: Upstream, tmp_path: Path) -> None:
    model.answer = saying("Hello", " there", ".")
    report = tmp_path / "report.json"
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("schemathesis")),
        *("--config-file", str(CONFIG), "run", f"{site.url}/openapi.json"),
        *("--max-examples", EXAMPLES, "--seed", SEED),
        *("--report", "json", "--report-json-path", str(report)),
        cwd=tmp_path,
    )
    assert await process.wait() == 0, "Schemathesis found faults; it tells of them on stdout"
    found = json.loads(report.read_text(encoding="utf-8"))
    assert found["failures"] == found["errors"] == []
    assert found["test_cases"]["generated"] >= AT_LEAST
    # An answer to a message shows that requests reached what is behind the checks.
    assert len(model.chats) > 50
