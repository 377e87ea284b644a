"""Compares the proxy with the published loop on real servers.

`make bench-real` starts a small server on the CPU; `python -m benchmarks.real --student-url ...`
uses running servers. Both sides get raw prompts and write greedily, so the student's text is the
same. The base threshold is 0, so no trajectory strays: only the way to the end is compared.
"""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

import orjson
import typer
import uvloop
from rich.console import Console

from benchmarks.figures import Figure, Findings
from benchmarks.load import together
from benchmarks.processes import PAIR, Pair, Process, Served, proxy, published_loop
from benchmarks.report import show, write
from benchmarks.weights import smollm2_folder
from trainer.reproduce.servers import vllm

_DELIMITER = "\n"


def main(
    *,
    student_url: Annotated[
        str | None,
        typer.Option(help="The student's server, without /v1. Default: vLLM is started."),
    ] = None,
    student_model: Annotated[str | None, typer.Option(help="The student's name there.")] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="The folder of the tokenizer of both models.")
    ] = None,
    teacher_url: Annotated[str | None, typer.Option(help="Default: the student's.")] = None,
    teacher_model: Annotated[str | None, typer.Option(help="Default: the student's.")] = None,
    kind: Annotated[Literal["vllm", "sglang"], typer.Option(help="Kind of both servers.")] = "vllm",
    num: Annotated[int, typer.Option(help="Number of trajectories.")] = 4,
    max_tokens: Annotated[int, typer.Option(help="Tokens per trajectory.")] = 160,
    output: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("runs/bench-real"),
) -> None:
    """Measure the proxy next to the published loop on real servers."""
    with ExitStack() as stack:
        if student_url is None:
            student = stack.enter_context(_small_vllm())
        elif student_model is None or tokenizer is None:
            raise typer.BadParameter("a running server needs --student-model and --tokenizer, too")
        else:
            student = Served(student_url, kind, student_model, str(tokenizer))
        teacher = replace(
            student,
            base_url=teacher_url or student.base_url,
            model=teacher_model or student.model,
        )
        started = time.perf_counter()
        findings = {
            "real": uvloop.run(_compare(Pair(student, teacher), _questions(num), max_tokens))
        }
    show(findings, Console(width=170))
    write(findings, output, quick=False, seconds=time.perf_counter() - started)


@contextmanager
def _small_vllm() -> Iterator[Served]:
    """Serve SmolLM2-135M on all cores, as student and teacher in one."""
    python = Path(".venv-servers/bin/python").absolute()
    folder = smollm2_folder(python)
    cores = os.cpu_count() or 1
    with (
        tempfile.TemporaryDirectory() as scratch,
        vllm(python, folder, Path(scratch) / "log", max_tokens=2048, threads=cores) as url,
    ):
        yield Served(url, "vllm", str(folder), str(folder))


def _questions(num: int) -> list[str]:
    lines = (files("configs") / "demo_questions.jsonl").read_text("utf-8").splitlines()
    return [f"Question: {orjson.loads(line)['question']}\nAnswer:\n" for line in lines[:num]]


async def _compare(pair: Pair[Served], questions: list[str], max_tokens: int) -> Findings:
    async with proxy({PAIR: pair}) as motab:
        # Both kinds of request once, because a server's first request of each kind is slow.
        await _trajectory(motab, "Warm up:\n", 16)
        plain = await _trajectory(motab, questions[0], max_tokens, f"student/{PAIR}-student")
        one = await _trajectory(motab, questions[0], max_tokens)
        started = time.perf_counter()
        await together(_trajectory(motab, question, max_tokens) for question in questions)
        all_s = time.perf_counter() - started
    alone, pool = [
        await published_loop(
            pair,
            questions,
            workers=workers,
            delimiter=_DELIMITER,
            base_threshold=0.0,
            max_tokens=max_tokens,
        )
        for workers in (1, len(questions))
    ]
    first = next(done.seconds for done in alone.done)
    num = len(questions)
    return Findings(
        (
            Figure("one: wall / plain student text", one / plain, f"{one:.1f} s"),
            Figure("one: the published loop's wall / ours", first / one, f"{first:.1f} s"),
            Figure(f"{num}: its wall / ours", alone.seconds / all_s, f"{all_s:.1f} s"),
            Figure(f"{num}: its pool's wall / ours", pool.seconds / all_s),
        ),
        conditions={"student": pair.student.model, "teacher": pair.teacher.model},
    )


async def _trajectory(motab: Process, prompt: str, max_tokens: int, model: str = PAIR) -> float:
    options = {"delimiter": _DELIMITER, "base_threshold": 0.0}
    body = {"model": model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0.0}
    started = time.perf_counter()
    await motab.post("/v1/motab/completions", body | {"motab": options})
    return time.perf_counter() - started


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
