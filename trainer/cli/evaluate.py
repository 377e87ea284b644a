"""The command `motab eval`."""

import re
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Final

import typer

from proxy.near_names import did_you_mean
from synth_client.cli import options
from synth_client.cli.shared import log_console, say_failed, servers_of
from synth_client.files.workspace import Workspace
from synth_client.judging.rules import CHOICE, MATH, check_rule
from synth_client.judging.verifier import Limits
from synth_client.questions.layout import Columns
from synth_client.questions.question import Synthesis
from synth_client.runs.session import run_loop
from synth_client.runs.synthesise import Run
from trainer.cli.options import EvalScopePython
from trainer.evaluation.benchmark import PLACE, load_benchmark
from trainer.evaluation.evalscope import NAMES, Source, named_benchmark
from trainer.evaluation.evaluate import RECORDS, RESULTS, TABLE, Evaluation, evaluate
from trainer.evaluation.pass_at_k import default_ks
from trainer.evaluation.results import Results

_NOT_IN_A_NAME: Final = re.compile(r"[^A-Za-z0-9._-]+")


def eval_command(
    *,
    model: options.Model,
    base_url: options.BaseUrls,
    benchmark: Annotated[
        str,
        typer.Option(
            help=f"One of EvalScope's {', '.join(NAMES)}; or problems with answers: a JSONL, JSON,"
            " CSV or Parquet file (./aime24 is a file of that name), a dataset's folder, or"
            " ORG/NAME on Hugging Face."
        ),
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            help="The folder with the problems of one of EvalScope's benchmarks.",
            show_default="from ModelScope",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            file_okay=False,
            help="The folder for records and results.",
            show_default="runs/eval/MODEL/BENCHMARK",
        ),
    ] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Samples of every problem.")] = 8,
    k: Annotated[
        list[int] | None,
        typer.Option(
            "--k", min=1, help="Estimate pass@k. Repeat it.", show_default="1, 4, 8, up to n"
        ),
    ] = None,
    prompt: Annotated[
        str, typer.Option(help=f"The prompt; the problem takes the place of {PLACE}.")
    ] = PLACE,
    limit: Annotated[
        int | None, typer.Option(min=1, help="The number of problems to take. Default: all.")
    ] = None,
    split: options.Split = "test",
    subset: options.Subset = None,
    question_column: options.QuestionColumn = None,
    answer_column: options.AnswerColumn = None,
    id_column: options.IdColumn = None,
    concurrency: options.Concurrency = 64,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    max_tokens: options.MaxTokens = None,
    seed: options.Seed = None,
    api_key: options.ApiKey = None,
    timeout: options.Timeout = 3600.0,
    resume: options.Resume = True,
    verify: Annotated[
        str | None,
        typer.Option(
            help=options.RULE_HELP,
            show_default=f"{MATH}, or {CHOICE} for rows of right and wrong answers",
        ),
    ] = None,
    verify_timeout: options.JudgingSeconds = 10.0,
    python: EvalScopePython = None,
) -> None:
    """Estimate pass@k of any served model on a benchmark. Run it again to resume."""
    ks = _ks(k, n)
    if PLACE not in prompt:
        raise typer.BadParameter(f"--prompt has no {PLACE}, so it would ask nothing")
    servers = servers_of(base_url, api_key, concurrency)
    rule = None if verify is None else check_rule(verify)
    is_named = _is_named(benchmark, data)
    if is_named:
        own = {
            "prompt": prompt != PLACE,
            "split": split != "test",
            "subset": subset,
            "verify": rule,
            "question-column": question_column,
            "answer-column": answer_column,
            "id-column": id_column,
        }
        _refuse(own, f"EvalScope has its own for {benchmark}; ./{benchmark} is a file")
    with ExitStack() as stack:
        loaded = (
            stack.enter_context(named_benchmark(Source(benchmark, data, limit), python))
            if is_named
            else load_benchmark(
                benchmark,
                prompt=prompt,
                limit=limit,
                split=split,
                subset=subset,
                columns=Columns(question_column, answer_column, id_column),
            )
        )
        name = loaded.name if is_named or not Path(benchmark).is_file() else Path(loaded.name).stem
        folder = output or Path("runs/eval", _file_name(model), _file_name(name))
        run = Run(
            dataset=loaded.dataset,
            output=folder / RECORDS,
            servers=servers,
            synthesis=Synthesis(
                model=model,
                temperature=temperature,
                top_p=top_p,
                max_tokens=max_tokens,
                seed=seed,
                plain=True,
                timeout_s=timeout,
            ),
            num_samples=n,
            fresh=not resume,
            verify=rule or loaded.rule,
            verify_limits=Limits(seconds=verify_timeout),
        )
        evaluation = Evaluation(benchmark=loaded, run=run, ks=ks)
        _say(run_loop(evaluate(evaluation, log_console())), folder)


def _is_named(benchmark: str, data: Path | None) -> bool:
    """Return whether EvalScope has the benchmark. Raises `BadParameter` where nothing has it."""
    known = f"EvalScope's are {', '.join(NAMES)}"
    if benchmark in NAMES:
        return True
    if data is not None:
        raise typer.BadParameter(f"--data is not for --benchmark {benchmark}; {known}")
    if "/" not in benchmark and not Path(benchmark).exists():
        raise typer.BadParameter(
            f"--benchmark {benchmark}: no such file or folder; {known}, and a dataset on the hub is"
            f" called ORG/NAME{did_you_mean(benchmark, NAMES)}"
        )
    return False


def _refuse(given: Mapping[str, object], why: str) -> None:
    if refused := [f"--{name}" for name, value in given.items() if value]:
        raise typer.BadParameter(f"{', '.join(refused)}: {why}")


def _ks(asked: list[int] | None, n: int) -> tuple[int, ...]:
    if asked is None:
        return default_ks(n)
    if max(asked) > n:
        raise typer.BadParameter(f"--k {max(asked)} needs as many samples, and --n is {n}")
    return tuple(sorted(set(asked)))


def _file_name(text: str) -> str:
    return _NOT_IN_A_NAME.sub("-", text).strip(".-") or "unnamed"


def _say(results: Results, folder: Path) -> None:
    typer.echo(results.to_markdown())
    typer.echo(f"{folder / RESULTS} has every problem, {folder / TABLE} this table")
    if results.num_failed:
        say_failed(results.num_failed, Workspace(folder / RECORDS).failed, err=True)
        raise typer.Exit(1)
