"""Whole runs of `motab eval` against a scripted server, killed and resumed."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from typer.testing import CliRunner, Result

from motab.cli import app
from synth_client.files.record_file import read_records
from synth_client.questions.question import seed_of
from tests.support.paths import ROOT
from tests.support.patience import longer_and_longer
from tests.support.synth_client.openai_server import Fault, Script, Scripted, scripted
from tests.support.trainer.evaluations import ENV, completion

NUM_RIGHT = {"0": 0, "1": 1, "2": 2, "3": 4}
"""How many of the 4 samples of each problem are right: the first ones."""


@pytest.fixture
async def server() -> AsyncIterator[Scripted]:
    async with scripted() as found:
        found.script = said(answer)
        yield found


def answer(problem: str, sample: int) -> dict[str, Any]:
    right = sample < NUM_RIGHT[problem]
    return completion(f"So it is $\\boxed{{{'1/2' if right else '7'}}}$.")


def seeds_of(problem: str) -> list[int]:
    name = f"p{problem}" if problem in NUM_RIGHT else "r"
    return [seed_of(100, name, sample) for sample in range(4)]


def said(by: Any) -> Script:
    """Answer as `by` does from the problem and the number of the sample, which its seed shows."""

    def script(body: dict[str, Any], _number: int) -> Fault:
        problem = body["messages"][-1]["content"].removeprefix("Solve ")
        found = by(problem, seeds_of(problem).index(body["seed"]))
        return found if isinstance(found, Fault) else Fault(200, found)

    return script


def benchmark(path: Path) -> Path:
    rows = [
        {"problem": i, "answer": "\\frac{1}{2}", "level": level, "unique_id": f"p{i}"}
        for i, level in zip(NUM_RIGHT, [1, 1, "2", "2"], strict=True)
    ]
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return path


class Eval:
    """`motab eval` as a process of its own."""

    def __init__(self, server: Scripted, folder: Path, *more: str) -> None:
        self.folder = folder / "out"
        self._arguments = [
            *(sys.executable, "-m", "motab", "eval"),
            *("--benchmark", str(benchmark(folder / "math.jsonl")), "--base-url", server.base_url),
            *("--model", "student", "--output", str(self.folder), "--n", "4", "--seed", "100"),
            *more,
        ]

    async def start(self) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *self._arguments, cwd=ROOT, env=ENV, stdout=-1, stderr=-1
        )

    async def ended(self, code: int) -> tuple[str, str]:
        """The output on both streams."""
        process = await self.start()
        out, err = await process.communicate()
        assert process.returncode == code, err.decode()
        return out.decode(), err.decode()

    def results(self) -> dict[str, Any]:
        found: dict[str, Any] = orjson.loads((self.folder / "results.json").read_bytes())
        return found

    def counts(self, *names: str) -> list[tuple[Any, ...]]:
        return [tuple(one[name] for name in names) for one in self.results()["problems"]]


async def test_the_columns_of_a_benchmark_can_be_named(server: Scripted, tmp_path: Path) -> None:
    named = ("--question-column", "level", "--answer-column", "problem", "--id-column", "answer")
    _, err = await Eval(server, tmp_path, *named).ended(1)
    assert "line 1: level is not a text, or is empty" in err
    named = ("--question-column", "problem", "--answer-column", "level", "--id-column", "unique_id")
    run = Eval(server, tmp_path, *named)
    await run.ended(0)
    assert run.counts("id") == [("p0",), ("p1",), ("p2",), ("p3",)]
    assert {record.answer for record in read_records(run.folder / "records.jsonl")} == {"1", "2"}


async def test_a_model_is_asked_plainly_and_judged_by_math(
    server: Scripted, tmp_path: Path
) -> None:
    run = Eval(
        server,
        tmp_path,
        *("--temperature", "0.6", "--top-p", "0.9", "--max-tokens", "50"),
        *("--prompt", "Solve {problem}"),
    )
    out, _ = await run.ended(0)
    assert len(server.bodies) == 16
    asked = {"model": "student", "n": 1, "temperature": 0.6, "top_p": 0.9, "max_tokens": 50}
    for body in server.bodies:
        problem, seed = body.pop("messages"), body.pop("seed")
        assert problem[0]["content"] in {f"Solve {i}" for i in NUM_RIGHT}
        assert seed in seeds_of(problem[0]["content"].removeprefix("Solve "))
        assert body == asked
    assert run.counts("id", "level", "n", "c") == [
        ("p0", "1", 4, 0),
        ("p1", "1", 4, 1),
        ("p2", "2", 4, 2),
        ("p3", "2", 4, 4),
    ]
    table = (
        "# student on math.jsonl\n"
        "\n"
        "| | problems | pass@1 | pass@4 |\n"
        "|---|---:|---:|---:|\n"
        "| level: 1 | 2 | 12.5 (0.0 to 25.0) | 50.0 (0.0 to 100.0) |\n"
        "| level: 2 | 2 | 75.0 (50.0 to 100.0) | 100.0 (100.0 to 100.0) |\n"
        "| all | 4 | 43.8 (12.5 to 81.2) | 75.0 (25.0 to 100.0) |\n"
        "\n"
        "In percent; 4 samples per problem, temperature 0.6, top_p 0.9, max_tokens 50, seed 100;"
        " answers judged by `math`. pass@k is the unbiased estimate, in brackets its 95% interval"
        " (percentile bootstrap over problems, 2,000 resamples, seed 0).\n"
    )
    assert (run.folder / "results.md").read_text(encoding="utf-8") == table
    assert out == (
        f"{table}\n{run.folder}/results.json has every problem, {run.folder}/results.md this"
        " table\n"
    )
    found = run.results()
    assert (found["served_as"], found["completion_tokens"]) == (["served-name"], 48)


async def test_killed_and_run_again_it_ends_with_what_an_undisturbed_run_has(
    server: Scripted, tmp_path: Path
) -> None:
    (tmp_path / "whole").mkdir()
    whole = Eval(server, tmp_path / "whole", "--verify", "number")
    await whole.ended(0)
    hung = asyncio.Event()
    num_answers = 0

    def hanging(problem: str, sample: int) -> dict[str, Any] | Fault:
        """Answers two, and nothing more."""
        nonlocal num_answers
        num_answers += 1
        if num_answers <= 2:
            return answer(problem, sample)
        if num_answers == 4:
            # Both places are taken by what hangs, so both answers are in the journal.
            hung.set()
        return Fault(None)

    server.script = said(hanging)
    run = Eval(server, tmp_path, "--verify", "number", "--concurrency", "2")
    for _ in range(2):
        num_answers = 0
        hung.clear()
        process = await run.start()
        await hung.wait()
        process.kill()
        await process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert not (run.folder / "results.json").exists()
    server.script = said(answer)
    before = server.num_requests
    await run.ended(0)
    assert server.num_requests - before == 16 - 4
    for name in ("results.json", "results.md"):
        assert (run.folder / name).read_bytes() == (whole.folder / name).read_bytes()


async def test_more_samples_are_added_to_those_that_are_there(
    server: Scripted, tmp_path: Path
) -> None:
    run = Eval(server, tmp_path, "--verify", "number", "--n", "2")
    await run.ended(0)
    assert run.counts("n", "c") == [(2, 0), (2, 1), (2, 2), (2, 2)]
    await Eval(server, tmp_path, "--verify", "number").ended(0)
    assert server.num_requests == 16
    assert run.counts("n", "c") == [(4, 0), (4, 1), (4, 2), (4, 4)]


async def test_a_sample_that_failed_is_missing_and_not_wrong_until_it_is_there(
    server: Scripted, tmp_path: Path
) -> None:
    def refusing(problem: str, sample: int) -> dict[str, Any] | Fault:
        full = {"error": {"message": "too long", "code": "context_length_exceeded"}}
        refused = problem == "3" and sample == 1
        return Fault(400, full) if refused else answer(problem, sample)

    server.script = said(refusing)
    run = Eval(server, tmp_path, "--verify", "number")
    out, err = await run.ended(1)
    said_why = f"1 failed: {run.folder}/records.failed.jsonl says why, and the same command"
    assert said_why in err
    assert "Of 16 samples, 1 failed: not counted." in out
    assert run.counts("n", "c", "num_failed")[3] == (3, 3, 1)
    pass_at_4 = run.results()["table"][-1]["pass_at_k"][-1]
    assert (pass_at_4["k"], pass_at_4["num_problems"]) == (4, 3)
    server.script = said(answer)
    await run.ended(0)
    assert server.num_requests == 17
    assert run.counts("n", "c", "num_failed")[3] == (4, 4, 0)


async def test_an_empty_answer_is_wrong_and_one_that_cannot_be_judged_is_neither(
    server: Scripted, tmp_path: Path
) -> None:
    def odd(problem: str, sample: int) -> dict[str, Any]:
        if problem == "0" and sample == 0:
            return completion("")
        if problem == "1" and sample == 0:
            return completion("$\\boxed{9^{9^{9^9}}}$", "length")
        return answer(problem, sample)

    server.script = said(odd)
    names = ("n", "c", "num_empty", "num_truncated", "num_unjudged", "num_failed")
    for limit_s in longer_and_longer(1):
        folder = tmp_path / f"{limit_s:g}"
        folder.mkdir()
        run = Eval(server, folder, "--verify-timeout", f"{limit_s:g}")
        out, _ = await run.ended(0)
        counts = run.counts(*names)
        if sum(num_unjudged for *_, num_unjudged, _ in counts) == 1:  # the others had time
            break
    else:
        pytest.fail("no limit was long enough")
    assert counts[:2] == [(4, 0, 1, 0, 0, 0), (3, 0, 0, 1, 1, 0)]
    assert "Of 16 samples, 1 cut off at the length limit and 1 empty: counted" in out
    assert "Of 16 samples, 1 not judged: not counted." in out


async def test_choices_are_judged_by_letter(server: Scripted, tmp_path: Path) -> None:
    answers = {"Correct Answer": "yes"} | {f"Incorrect Answer {i}": f"no {i}" for i in (1, 2, 3)}
    row = {"Record ID": "r", "Question": "Is it?", **answers}

    def by_text(problem: str, sample: int) -> dict[str, Any]:
        wanted = "yes" if sample < 3 else "no 2"
        letter = next(line[0] for line in problem.splitlines() if line[3:] == wanted)
        return completion(f"The answer is {letter}.")

    server.script = said(by_text)
    run = Eval(server, tmp_path)
    (tmp_path / "math.jsonl").write_bytes(orjson.dumps(row))
    await run.ended(0)
    assert run.counts("id", "n", "c") == [("r", 4, 3)]
    assert run.results()["verify"] == "choice"


async def test_a_model_that_the_server_does_not_know_ends_it_at_once(
    server: Scripted, tmp_path: Path
) -> None:
    unknown = {"error": {"message": "The model `student` does not exist", "code": "no_model"}}
    server.script = lambda _body, _number: Fault(404, unknown)
    run = Eval(server, tmp_path, "--concurrency", "1")
    _, err = await run.ended(1)
    assert "motab: the server refuses the run: HTTP 404: The model `student` does not exist" in err
    assert server.num_requests == 1
    assert not (run.folder / "results.json").exists()


def invoke(folder: Path, *more: str) -> Result:
    asked = ("--base-url", "http://127.0.0.1:9/v1", "--model", "m", "--output", str(folder / "out"))
    return CliRunner().invoke(app, ["eval", *asked, *more], env={"COLUMNS": "400"})


@pytest.mark.parametrize(
    ("more", "fault"),
    [
        (("--n", "4", "--k", "1", "--k", "8"), "--k 8 needs as many samples, and --n is 4"),
        (("--prompt", "Solve it."), "--prompt has no {problem}, so it would ask nothing"),
        (("--base-url", "localhost:8000"), "--base-url localhost:8000: write http://HOST"),
        (("--k", "0"), "--k"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    more: tuple[str, ...], fault: str, tmp_path: Path
) -> None:
    source = benchmark(tmp_path / "math.jsonl")
    refused = invoke(tmp_path, "--benchmark", str(source), *more)
    assert refused.exit_code == 2
    assert fault in refused.output
    assert list(tmp_path.iterdir()) == [source]


KNOWN = "EvalScope's are aime24, aime25, math_500, gpqa_diamond, ifeval"


@pytest.mark.parametrize(
    ("more", "fault"),
    [
        (("--benchmark", "aime"), f"--benchmark aime: no such file or folder; {KNOWN}"),
        (("--benchmark", "./x.jsonl", "--data", "."), f"is not for --benchmark ./x.jsonl; {KNOWN}"),
        (("--benchmark", "aime24", "--data", "nowhere"), "'nowhere' does not exist"),
        (
            ("--benchmark", "aime24", "--verify", "math", "--split", "train"),
            "--split, --verify: EvalScope has its own for aime24; ./aime24 is a file",
        ),
        (
            ("--benchmark", "aime24", "--answer-column", "target"),
            "--answer-column: EvalScope has its own for aime24; ./aime24 is a file",
        ),
    ],
)
def test_what_does_not_go_with_a_benchmark_is_refused(
    more: tuple[str, ...], fault: str, tmp_path: Path
) -> None:
    refused = invoke(tmp_path, *more)
    assert refused.exit_code == 2
    assert fault in " ".join(refused.output.replace("\u2502", " ").split())


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, "--python {0}: no such program"),
        ("exit 3", "{0}: cannot be used to evaluate: exit code 3"),
        ("echo No module >&2; exit 1", "{0}: cannot be used to evaluate: No module"),
        (
            """echo '{{"error": "ImportError: No module named evalscope"}}'""",
            "{0}: cannot be used to evaluate: ImportError: No module named evalscope",
        ),
        (
            """echo '{{"error": "OSError: no hub"}}'""",
            "aime24 cannot be read from ModelScope; --data reads a folder: OSError: no hub",
        ),
    ],
)
def test_an_environment_that_cannot_evaluate_is_told_in_one_line(
    content: str | None, fault: str, tmp_path: Path
) -> None:
    python = tmp_path / "python"
    if content is not None:
        python.write_text(f"#!/bin/sh\n{content.format()}\n", encoding="utf-8")
        python.chmod(0o755)
    failed = invoke(tmp_path, "--benchmark", "aime24", "--python", str(python))
    assert str(failed.exception) == fault.format(python)
    assert not (tmp_path / "out").exists()


def test_without_an_environment_it_is_said_how_to_make_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.environments._SOURCE", tmp_path / "trainer")
    monkeypatch.chdir(tmp_path)
    failed = invoke(tmp_path, "--benchmark", "aime24")
    assert "there is no .venv-evalscope here; make eval-env in motab's source makes it" in str(
        failed.exception
    )


def test_a_problem_without_an_answer_is_named_before_anything_is_asked(tmp_path: Path) -> None:
    source = tmp_path / "math.jsonl"
    source.write_bytes(b'{"problem": "a", "answer": "1"}\n{"problem": "b"}\n')
    failed = invoke(tmp_path, "--benchmark", str(source))
    assert "math.jsonl, line 2: no answer" in str(failed.exception)
    assert list(tmp_path.iterdir()) == [source]
