"""Tests the command `motab probe` and what it prints."""

import asyncio
import sys
from pathlib import Path

import orjson
import pytest
from rich.console import Console

from motab.cli import main
from proxy.probe.table import show
from tests.support.fake_vllm import FakeVllm
from tests.support.paths import ROOT
from tests.support.proxy.probes import ALL, LADDER, config_of, probed
from tests.support.replay import replay


def cli(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["motab", "probe", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    assert isinstance(caught.value.code, int)
    return caught.value.code


async def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake: FakeVllm, *arguments: str
) -> int:
    """The exit code of the command, while its upstreams are served from this event loop."""
    async with replay() as up:
        fake.serve(up)
        models = {"pair": {"student": "up", "teacher": "up"}}
        config_of(tmp_path, {"up": up.client.base_url}, models)
        config = str(tmp_path / "motab.yaml")
        return await asyncio.to_thread(cli, monkeypatch, "--config", config, *arguments)


async def test_json_is_one_object_with_the_documented_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await command(tmp_path, monkeypatch, FakeVllm(), "--json") == 0
    out = orjson.loads(capsys.readouterr().out)
    assert list(out) == ["schema", "motab_version", "ok", "upstreams", "models"]
    assert (out["schema"], out["ok"]) == (1, True)
    (upstream,) = out["upstreams"].values()
    assert list(upstream) == ["kind", "base_url", "model", "checks", "limits"]
    assert list(upstream["checks"]) == [*ALL[:8], "scoring", "reasoning"]
    assert list(upstream["checks"]["scoring"]) == LADDER
    way = upstream["checks"]["scoring"]["prompt_logprobs"]
    assert list(way) == ALL[8:]
    for check in (*(upstream["checks"][name] for name in ALL[:8]), *way.values()):
        assert list(check) == ["result", "detail", "values"]
        assert check["result"] == "ok"
    assert out["models"]["pair"] == {
        "ok": True,
        "student": "up",
        "teacher": "up",
        "method": "motab",
        "scoring": "prompt_logprobs",
        "reasons": [],
        "notes": [],
    }


async def test_the_documentation_names_every_key_of_the_json() -> None:
    text = (ROOT / "docs" / "probe.md").read_text(encoding="utf-8")
    for name in [*ALL, "scoring", "reasoning", "reasons", "notes", "schema", "motab_version"]:
        assert f"`{name}`" in text or f'"{name}"' in text, name


async def test_a_pair_that_cannot_is_exit_code_1_and_the_report_comes_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await command(tmp_path, monkeypatch, FakeVllm(logprobs_shift=1), "--json") == 1
    out = orjson.loads(capsys.readouterr().out)
    assert (out["ok"], out["models"]["pair"]["ok"]) == (False, False)


async def test_the_table_tells_every_check_and_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await command(tmp_path, monkeypatch, FakeVllm(max_logprobs=5)) == 1
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "stop strings ok stops, and leaves the stop string out" in lines
    assert any(line.startswith("self-test ok 24 tokens") for line in lines)
    assert any(line.startswith("top-k no 20 are wanted, 5 come") for line in lines)
    assert any(line.startswith("pair cannot teacher 'up': entropy_top_k is 20") for line in lines)


@pytest.mark.parametrize(
    ("window", "answer", "shown"),
    [
        (40960, 8192, "(context 40,960 tokens, answer 8,192 tokens)"),
        (None, None, "(limits not known)"),
    ],
)
async def test_the_limits_of_the_models_are_shown(
    tmp_path: Path, window: int | None, answer: int | None, shown: str
) -> None:
    report = await probed(tmp_path, FakeVllm(), context_tokens=window, max_output_tokens=answer)
    tokens = {"context_tokens": window, "input_tokens": None, "output_tokens": answer}
    found = {**tokens, "vocabulary": None}
    assert report.to_json()["upstreams"]["t"]["limits"] == found
    console = Console(width=160, record=True, quiet=False, stderr=True)
    show(report, console)
    assert console.export_text().count(shown) == 2


def test_no_config_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli(monkeypatch) == 2


@pytest.mark.parametrize("width", [80, 160])
async def test_the_table_fits_its_console_and_cuts_nothing_but_pages(
    tmp_path: Path, width: int
) -> None:
    report = await probed(tmp_path, FakeVllm(logprobs_shift=1, has_template=False))
    console = Console(width=width, record=True, file=None, quiet=False, stderr=True)
    show(report, console)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    flat = " ".join(text.split())
    assert "its scores are wrong" in flat
    assert "note: teacher 't': chat requests will fail" in flat
