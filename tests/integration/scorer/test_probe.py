"""Tests what the probe and the doctor find out about a pair's own scorer."""

import json
import re
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web
from rich.console import Console

from motab.findings import of_probe, of_rate
from proxy.probe.report import Report
from proxy.probe.run import probe
from proxy.probe.table import show
from tests.support.fake_vllm import MODEL, FakeVllm
from tests.support.proxy.probes import config_of
from tests.support.records import record_of, unbroken
from tests.support.replay import replay
from tests.support.servers.own_scorer import OwnScorer, served

NAME = "scoring/pair"
STATIC = {"boundary": "static", "base_threshold": 0.3}


async def probed(
    tmp_path: Path, scorer: OwnScorer, params: dict[str, Any] | None = None, url: str | None = None
) -> tuple[Any, Report]:
    """The configuration of a healthy pair with that scorer, and the report on it."""
    async with replay() as server, served(scorer):
        FakeVllm().serve(server)
        scoring = {"http": url or scorer.base_url, "answer_timeout_s": 5}
        pair = {"student": "up", "teacher": "up", "params": params or STATIC, "scoring": scoring}
        config = config_of(tmp_path, {"up": server.client.base_url}, {"pair": pair})
        return config, await probe(config, limit_s=60)


async def test_a_scorer_is_probed_as_an_upstream_and_its_pair_can_work(tmp_path: Path) -> None:
    scorer = OwnScorer()
    config, report = await probed(tmp_path, scorer)
    found = report.upstreams[NAME]
    assert (found.kind, found.base_url, found.model) == ("http", scorer.base_url, None)
    assert found.checks.reachable.result == "ok"
    assert list(found.checks.scoring) == ["http"]
    way = found.checks.scoring["http"]
    assert way.available.result == way.speed.result == "ok"
    assert len(way.available.values["step_values"]) == 2
    assert way.speed.values["num_steps"] == 6
    for check in (way.self_test, way.top_k, way.prefix_cache, found.checks.writes):
        assert check.result == "not_applicable"
    pair = report.models["pair"]
    assert (pair.can, pair.scoring, pair.reasons) == (True, "http", ())
    assert "http" not in report.upstreams["up"].checks.scoring
    console = Console(width=160, record=True, quiet=False, stderr=True)
    show(report, console)
    text = console.export_text()
    assert f"{NAME}  http at {scorer.base_url}\n" in text
    assert "scored by http" in text
    assert re.search(r"http +ok +gives two steps the values", text)
    assert re.search(r"speed +ok +6 steps in", text)
    assert "gives values and nothing else" not in text
    assert json.loads(orjson.dumps(report.to_json()))["upstreams"][NAME]["model"] is None
    said = [finding.text for finding in of_probe("pair", config, report)]
    assert "steps are scored by http" in said
    assert MODEL not in " ".join(said)


async def test_a_scorer_that_answers_wrongly_keeps_its_pair_from_work(tmp_path: Path) -> None:
    scorer = OwnScorer(fault=lambda: web.Response(text='{"values": [0.5, "high"]}'))
    _, report = await probed(tmp_path, scorer)
    assert report.upstreams[NAME].checks.model.result == "failed"
    (reason,) = report.models["pair"].reasons
    assert reason.startswith("scorer: model: /score_steps is not what was asked for: values[1]")


async def test_a_scorer_that_is_down_is_named(tmp_path: Path) -> None:
    _, report = await probed(tmp_path, OwnScorer(), url="http://127.0.0.1:9")
    assert report.upstreams[NAME].checks.reachable.result == "failed"
    (reason,) = report.models["pair"].reasons
    assert reason.startswith("scorer: not reachable: no connection to http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"base_threshold": 0.3}, "boundary must be 'static'"),
        ({"boundary": "static"}, "they need a base_threshold of their own"),
    ],
)
async def test_a_pair_without_thresholds_for_its_scorer_cannot_work(
    tmp_path: Path, params: dict[str, Any], words: str
) -> None:
    _, report = await probed(tmp_path, OwnScorer(), params)
    (reason,) = report.models["pair"].reasons
    assert reason.startswith("the scorer's values come from 'http'")
    assert words in reason


def test_the_doctor_says_where_the_scorers_values_lie() -> None:
    record = record_of(unbroken(scoring="http"))
    (finding,) = of_rate([record], [record])
    assert "the scorer's values lie between" in finding.text
    assert "docs/servers/scorer.md" in finding.text
