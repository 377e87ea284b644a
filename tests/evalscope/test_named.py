"""`motab eval` on benchmarks with a name: EvalScope's own code on invented problems."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from synth_client.questions.question import seed_of
from tests.support.paths import ROOT
from tests.support.synth_client.openai_server import Fault, Scripted, scripted
from tests.support.trainer.evaluations import ENV, completion

PYTHON = ROOT / ".venv-evalscope" / "bin" / "python"
AIME: list[dict[str, Any]] = [
    {"id": 7, "problem": "Count to 12.", "answer": "12"},
    {"problem": "Nil?", "answer": "0"},
]
CHECKS = [
    ("Write three sentences.", ["length_constraints:number_sentences", "punctuation:no_comma"]),
    ("Write small.", ["change_case:english_lowercase"]),
]
ARGUMENTS = [[{"num_sentences": 3, "relation": "at least"}, {}], [{}]]
DATA: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "aime24": ("test", AIME),
    "aime25": ("test", AIME),
    "math_500": (
        "test",
        [
            {"problem": p, "answer": a, "level": level, "unique_id": p, "solution": "", **subject}
            for p, a, level, subject in [
                ("Half of three?", "\\frac{3}{2}", 5, {"subject": "Algebra"}),
                ("Two and two?", "4", 1, {"subject": "Algebra"}),
                ("Which set $\\{1\\}$ has?", "1", 1, {"subject": "Sets"}),
            ]
        ],
    ),
    "gpqa_diamond": (
        "train",
        [
            {
                "Record ID": name,
                "Question": f"Which is {name}?",
                "Correct Answer": "right",
                **{f"Incorrect Answer {i}": f"wrong {i}" for i in (1, 2, 3)},
            }
            for name in ("r1", "r2", "r3")
        ],
    ),
    "ifeval": (
        "train",
        [
            {"key": i, "prompt": prompt, "instruction_id_list": ids, "kwargs": arguments}
            for i, ((prompt, ids), arguments) in enumerate(
                zip(CHECKS, ARGUMENTS, strict=True), start=1000
            )
        ],
    ),
}
SMALL = "this is a small and plain answer that is written in simple english words."
SAID = {
    "Count to 12.": "It is $\\boxed{012}$.",
    "Nil?": "It is $\\boxed{x}$.",
    "Half of three?": "It is $\\boxed{1.5}$.",
    "Two and two?": "\\boxed{5}",
    "Which set": "Set 1 is \\boxed{1}",
    "Which is r": "I am sure.\nANSWER: A",
    "Write three": "One here. And two.",
    "Write small.": SMALL,
}


def saying(body: dict[str, Any]) -> str:
    asked = body["messages"][-1]["content"]
    return next(text for part, text in SAID.items() if part in asked)


def folder_of(name: str, parent: Path) -> Path:
    split, rows = DATA[name]
    folder = parent / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{split}.jsonl").write_bytes(b"".join(orjson.dumps(one) + b"\n" for one in rows))
    return folder


@pytest.fixture
async def server() -> AsyncIterator[Scripted]:
    async with scripted() as found:
        found.script = lambda body, _number: Fault(200, completion(saying(body)))
        yield found


async def printed(*command: str | Path, code: int = 0) -> tuple[str, str]:
    process = await asyncio.create_subprocess_exec(
        *map(str, command), cwd=ROOT, env={**os.environ, **ENV}, stdout=-1, stderr=-1
    )
    out, err = await process.communicate()
    assert process.returncode == code, err.decode()
    return out.decode(), err.decode()


async def evaluated(
    name: str, server: Scripted, parent: Path, *more: str, code: int = 0
) -> tuple[str, str]:
    command = [sys.executable, "-m", "motab", "eval"]
    command += ["--benchmark", name, "--data", str(folder_of(name, parent))]
    command += ["--python", str(PYTHON), "--base-url", server.base_url, "--model", "student"]
    command += ["--n", "2", "--output", str(parent / "out" / name), *more]
    return await printed(*command, code=code)


def results(parent: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads((parent / "out" / name / "results.json").read_bytes())
    return found


def texts(server: Scripted) -> set[str]:
    return {json.dumps(body["messages"]) for body in server.bodies}


async def test_questions_and_scores_are_those_of_evalscope_itself(
    server: Scripted, tmp_path: Path
) -> None:
    folders = {name: str(folder_of(name, tmp_path)) for name in DATA}
    alone = Path(__file__).with_name("evaluate_alone.py")
    out, _ = await printed(PYTHON, alone, server.base_url, tmp_path / "work", json.dumps(folders))
    theirs = json.loads(out.splitlines()[-1])
    asked = texts(server)
    server.bodies.clear()
    more = ("--seed", "3", "--temperature", "0.5")
    async with asyncio.TaskGroup() as group:
        for name in DATA:
            group.create_task(evaluated(name, server, tmp_path, *more))
    assert texts(server) == asked
    ids = [one["id"] for name in DATA for one in results(tmp_path, name)["problems"]]
    seeds = {seed_of(3, each, sample) for each in ids for sample in range(2)}
    assert {body["seed"] for body in server.bodies} == seeds
    assert {body["temperature"] for body in server.bodies} == {0.5}
    for name in DATA:
        found = results(tmp_path, name)
        ours = {"pass@1": found["table"][-1]["pass_at_k"][0]["value"]}
        ours |= {one["name"]: one["mean"]["value"] for one in found["scores"]}
        scores = {metric.partition(":")[0]: score for metric, score in theirs[name].items()}
        ours["accuracy"] = ours["acc"] = ours["pass@1"]
        assert scores == {metric: round(ours[metric], 4) for metric in scores}
        assert found["verify"] == f"evalscope-1.14.1/{name}"
    by = [(row["by"], row["name"]) for row in results(tmp_path, "math_500")["table"]]
    assert by == [
        *(("level", "1"), ("level", "5")),
        *(("subject", "Algebra"), ("subject", "Sets"), ("all", None)),
    ]
    ids = [one["id"] for one in results(tmp_path, "aime24")["problems"]]
    assert ids == ["7", "1"]


async def test_what_failed_is_missing_what_is_empty_is_wrong_and_thoughts_are_not_judged(
    server: Scripted, tmp_path: Path
) -> None:
    first_seed = seed_of(0, "1000", 0)

    def script(body: dict[str, Any], _number: int) -> Fault:
        if "small" not in body["messages"][-1]["content"]:
            is_first = body["seed"] == first_seed
            return Fault(200, completion("A, b.</think>One. Two. Three." * is_first))
        full = {"error": {"message": "too long", "code": "context_length_exceeded"}}
        return Fault(400, full)

    server.script = script
    out, err = await evaluated("ifeval", server, tmp_path, "--seed", "0", code=1)
    assert "2 failed: " in err
    assert "| inst_level_strict | 1 | 50.0 |" in out
    first, second = results(tmp_path, "ifeval")["problems"]
    assert (first["n"], first["c"], first["num_empty"]) == (2, 1, 1)
    assert (second["n"], second["num_failed"], second["scores"]) == (0, 2, {})
    server.script = lambda _body, _number: Fault(200, completion(SMALL))
    before = server.num_requests
    await evaluated("ifeval", server, tmp_path, "--seed", "0")
    assert server.num_requests - before == 3  # the failed ones, and the empty one
    scores = {one["name"]: one["mean"]["value"] for one in results(tmp_path, "ifeval")["scores"]}
    assert scores["inst_level_strict"] == pytest.approx((2 * 0.75 + 1) / 3)


async def test_data_that_evalscope_cannot_read_is_told_in_one_line(
    server: Scripted, tmp_path: Path
) -> None:
    folder = folder_of("math_500", tmp_path)
    (folder / "test.jsonl").rename(folder / "train.jsonl")
    _, err = await printed(
        *(sys.executable, "-m", "motab", "eval"),
        *("--benchmark", "math_500", "--data", folder, "--python", PYTHON),
        *("--base-url", server.base_url, "--model", "student", "--output", tmp_path / "out"),
        code=1,
    )
    assert err == (
        f'motab: math_500 cannot be read from {folder}: ValueError: Unknown split "test".'
        " Should be one of ['train'].\n"
    )
    assert server.num_requests == 0
