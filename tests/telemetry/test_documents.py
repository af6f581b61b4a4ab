"""The dashboard and the documentation speak of the metrics that there are, and of all of them."""

from __future__ import annotations

import json
import re

from tests.support.metrics import scrape
from tests.support.process import ROOT
from tests.support.service import Service

NAME = re.compile(r"\b(?:chat_grpc|process|python)_[a-z0-9_]+")


async def names(service: Service) -> set[str]:
    """Return the names of all samples that the server can have."""
    await service.ask()
    return {sample.name for family in (await scrape(service.channel)).families for sample in family.samples}


async def test_the_dashboard_asks_for_what_there_is(chat_service: Service) -> None:
    dashboard = json.loads((ROOT / "deploy" / "grafana" / "chat-grpc.json").read_text(encoding="utf-8"))
    asked = {
        name
        for panel in dashboard["panels"]
        for target in panel.get("targets", [])
        for name in NAME.findall(target["expr"])
    }
    assert len(asked) > 15
    assert asked - await names(chat_service) == set()


async def test_every_metric_is_documented(chat_service: Service) -> None:
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    table = text.partition("## Which metrics are there?")[2].partition("\n## ")[0]
    documented = {
        f"chat_grpc_{name}"
        for line in table.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`([a-z_]+)`", line.split("|")[1])
    }
    there = {re.sub(r"_(bucket|count|sum)$", "", name) for name in await names(chat_service)}
    assert documented == {name for name in there if name.startswith("chat_grpc_")}
    alerts = text.partition("## Which alerts make sense?")[2].partition("\n## ")[0]
    assert set(NAME.findall(alerts)) - await names(chat_service) == set()
