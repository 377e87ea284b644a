"""Tests what `motab init` writes about scripted servers, and what it refuses to write."""

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from motab.cli import main
from proxy.config import load_config
from tests.support.fake_vllm import MODEL, FakeVllm
from tests.support.replay import json_reply, replay

KEY = "sk-a-key-of-the-teacher-1"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(*arguments: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["motab", "init", *arguments])
        try:
            main()
        except SystemExit as exited:
            return int(exited.code or 0)
    return 0


async def init(
    teacher: FakeVllm, *arguments: str, student: FakeVllm | None = None, suffix: str = ""
) -> int:
    async with replay() as s, replay() as t:
        (student or FakeVllm()).serve(s)
        teacher.serve(t)
        urls = s.client.base_url + suffix, t.client.base_url + suffix
        return await asyncio.to_thread(command, *urls, *arguments)


def files(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def params_of(path: Path) -> Mapping[str, Any]:
    (model,) = load_config(path).models.values()
    return model.params


async def test_a_file_of_two_servers_is_complete(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await init(FakeVllm()) == 0
    config = load_config(here / "motab.yaml")
    assert {name: (one.kind, one.model) for name, one in config.upstreams.items()} == {
        "student": ("vllm", MODEL),
        "teacher": ("vllm", MODEL),
    }
    assert list(config.models) == ["motab/mini+mini"]
    text = (here / "motab.yaml").read_text(encoding="utf-8")
    flat = " ".join(text.replace("#", " ").split())
    assert "--enable-scale-out" in flat
    assert "reasoning: auto its chat template shows: none" in flat
    assert "# context_tokens: 32768" in text
    assert "# gpus: 1" in text
    assert "--price" in text
    out = capsys.readouterr().out
    assert "Wrote motab.yaml" in out
    assert "Next: motab doctor --config motab.yaml" in out
    assert files(here) == ["motab.yaml"]


async def test_v1_at_the_end_of_a_url_is_left_out(here: Path) -> None:
    assert await init(FakeVllm(), suffix="/v1/") == 0
    urls = [url for one in load_config(here / "motab.yaml").upstreams.values() for url in one.urls]
    assert not any(url.endswith("/v1") for url in urls)


async def test_a_window_that_only_refusals_name_bounds_the_texts(here: Path) -> None:
    assert await init(FakeVllm(window=1024), "--output", "small.yaml") == 0
    assert params_of(here / "small.yaml") == {"max_total_tokens": 1024}


async def test_few_candidates_lower_their_number(here: Path) -> None:
    assert await init(FakeVllm(max_logprobs=5)) == 0
    assert params_of(here / "motab.yaml") == {"entropy_top_k": 5}


async def test_a_pair_that_cannot_work_is_written_with_the_reason_and_exit_code_1(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await init(FakeVllm(logprobs_shift=1)) == 1
    text = (here / "motab.yaml").read_text(encoding="utf-8")
    assert "# This pair cannot work yet: teacher 'teacher': prompt_logprobs fails the" in text
    assert "This pair cannot work yet" in capsys.readouterr().out
    load_config(here / "motab.yaml")


async def test_a_key_stands_in_the_file_by_its_variable_only(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TEACHER_KEY", KEY)
    assert await init(FakeVllm(), "--teacher-key-variable", "TEACHER_KEY") == 0
    text = (here / "motab.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(text)["upstreams"]["teacher"]["api_key"] == "${TEACHER_KEY}"
    assert "api_key" not in yaml.safe_load(text)["upstreams"]["student"]
    assert KEY not in text + capsys.readouterr().out


async def test_a_file_that_is_there_stays_unless_forced(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = here / "motab.yaml"
    path.write_text("mine", encoding="utf-8")
    assert command("http://127.0.0.1:9", "http://127.0.0.1:9") == 1
    assert "is there already" in capsys.readouterr().err
    assert path.read_text(encoding="utf-8") == "mine"
    assert await init(FakeVllm(), "--force") == 0
    load_config(path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("127.0.0.1:1", "http://h"), "STUDENT_URL must be a URL such as http://"),
        (("http://h", "http://h?key=abc"), "TEACHER_URL seems to hold a key"),
        (("http://h", "http://u:password@h"), "TEACHER_URL seems to hold a key"),
        (("http://h/gw/a1b2c3d4e5f6a7b8c9d0", "http://h"), "STUDENT_URL seems to hold a key"),
        (
            ("http://h", "http://h/${NO_SUCH}/x"),
            "TEACHER_URL: the environment variable NO_SUCH is not set",
        ),
        (
            ("http://h", "http://h", "--student-key-variable", "sk-123"),
            "--student-key-variable is the name of an environment variable, not a key",
        ),
        (
            ("http://h", "http://h", "--student-key-variable", "NO_SUCH"),
            "--student-key-variable: the environment variable NO_SUCH is not set",
        ),
        (("http://127.0.0.1:9", "http://127.0.0.1:9"), "no connection to http://127.0.0.1:9"),
    ],
)
def test_what_cannot_be_asked_is_said_and_nothing_is_written(
    arguments: tuple[str, ...], said: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(*arguments) == 1
    err = capsys.readouterr().err
    assert said in err
    assert "password" not in err
    assert files(here) == []


async def test_the_same_model_twice_is_no_pair(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with replay() as up:
        FakeVllm().serve(up)
        url = up.client.base_url
        assert await asyncio.to_thread(command, url, url + "/v1") == 1
    assert "student and teacher are the same model, mini at" in capsys.readouterr().err
    assert files(here) == []


async def test_a_model_named_like_a_variable_of_ours_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await init(FakeVllm(served="x${HOME}")) == 1
    assert "calls its model 'x${HOME}', which is refused" in capsys.readouterr().err
    assert files(here) == []


async def test_hostile_words_of_a_server_stay_in_their_place(here: Path) -> None:
    name = "a: b\n  #\u0007 'x' \"y\"\u2028- {z"
    both = FakeVllm(served=name)
    assert await init(both, student=FakeVllm(served=name)) == 0
    config = load_config(here / "motab.yaml")
    assert {one.model for one in config.upstreams.values()} == {name}
    assert list(config.models) == ["motab/a-b-x-y---z+a-b-x-y---z"]


async def test_a_server_that_breaks_while_it_is_probed_writes_nothing(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Breaking(FakeVllm):
        def serve(self, up: Any) -> None:
            super().serve(up)
            once = json_reply({"tokens": [1], "max_model_len": 9})
            up.on("POST", "/tokenize", once, json_reply({"error": "gone"}, 500))

    assert await init(Breaking()) == 1
    assert "the teacher's server cannot be used: " in capsys.readouterr().err
    assert files(here) == []
