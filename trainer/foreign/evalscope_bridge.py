"""Answers questions about EvalScope's benchmarks from inside EvalScope's environment.

It imports nothing of ours. It has two commands:

`problems NAME [FOLDER]` prints, in one line, an object with `version`, `prompt` (EvalScope's
template) and `problems` in the order of the data, or {"error": ...}.

`judge NAME FILE SECONDS` works for `synth_client.judging.verifier` in the protocol of
`synth_client.judging.worker`; FILE holds the problems of `problems`, one per line.
"""

import json
import logging
import math
import os
import resource
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

# The score that decides whether an output is right: IFEval's, most benchmarks', and AIME's.
SUCCESS = ("prompt_level_strict", "accuracy", "acc")
IDS = ("unique_id", "id", "ID", "Record ID", "key")
SUBJECTS = ("subject", "High-level domain")
OURS = "motab"


def adapter_of(name: str, folder: str | None = None) -> Any:  # noqa: ANN401
    """Return EvalScope's adapter for the benchmark, with default settings, but thoughts are cut."""
    import evalscope.benchmarks  # noqa: F401, PLC0415
    from evalscope.api.registry import get_benchmark  # noqa: PLC0415
    from evalscope.config import TaskConfig  # noqa: PLC0415

    settings: dict[str, Any] = {"filters": {"remove_until": "</think>"}}
    if folder is not None:
        settings["dataset_id"] = folder
    # motab asks the server itself, so this address is never used.
    config = TaskConfig(
        model="motab",
        eval_type="openai_api",
        api_url="http://127.0.0.1:9/v1",
        datasets=[name],
        dataset_args={name: settings},
    )
    return get_benchmark(name, config)


def problems(name: str, folder: str | None) -> dict[str, Any]:
    """Return the object to print."""
    adapter = adapter_of(name, folder)
    read = adapter.record_to_sample
    num_read = 0

    def with_its_columns(record: Mapping[str, Any]) -> Any:  # noqa: ANN401
        """Add what EvalScope drops: the row's place and, of some benchmarks, id and subject."""
        nonlocal num_read
        sample = read(record)
        columns = {
            "place": num_read,
            "id": _first(record, IDS),
            "level": record.get("level"),
            "subject": _first(record, SUBJECTS),
        }
        sample.metadata = {**(sample.metadata or {}), OURS: columns}
        num_read += 1
        return sample

    adapter.record_to_sample = with_its_columns
    samples = [sample for subset in adapter.load_dataset().values() for sample in subset]
    if len(samples) != num_read:  # a row has a level that EvalScope does not know
        raise ValueError(f"EvalScope takes {len(samples)} of {num_read} rows")
    samples.sort(key=lambda sample: sample.metadata[OURS]["place"])
    return {
        "version": version("evalscope"),
        "prompt": adapter.prompt_template,
        "problems": [_problem(sample) for sample in samples],
    }


def _first(record: Mapping[str, Any], names: tuple[str, ...]) -> object:
    return next((record[name] for name in names if record.get(name) is not None), None)


def _problem(sample: Any) -> dict[str, Any]:  # noqa: ANN401
    columns = sample.metadata.pop(OURS)
    name = columns["place"] if columns["id"] is None else columns["id"]
    return {
        "id": str(name),
        "messages": [{"role": one.role, "content": one.text} for one in sample.input],
        "answer": sample.target or _instructions(sample.metadata),
        "level": columns["level"],
        "subject": columns["subject"],
        "weights": _weights(sample.metadata),
        "sample": sample.model_dump(mode="json"),
    }


def _instructions(doc: Mapping[str, Any]) -> str:
    """Return what IFEval checks in place of an answer."""
    given = [
        {name: value for name, value in one.items() if value is not None} for one in doc["kwargs"]
    ]
    checks = zip(doc["instruction_id_list"], given, strict=True)
    return json.dumps([{"id": name, **arguments} for name, arguments in checks])


def _weights(doc: Mapping[str, Any]) -> dict[str, int]:
    """Return the problem's weight in the mean of each score, if there are several scores."""
    num_instructions = len(doc.get("instruction_id_list", ()))
    if not num_instructions:
        return {}
    return {
        "prompt_level_strict": 1,
        "prompt_level_loose": 1,
        "inst_level_strict": num_instructions,
        "inst_level_loose": num_instructions,
    }


def judge_of(name: str, file: Path) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Return a judge of records. Raises if something that it needs is missing."""
    adapter = adapter_of(name)
    if name == "ifeval":
        _find_punkt()
    from evalscope.api.dataset import Sample  # noqa: PLC0415
    from evalscope.api.evaluator import TaskState  # noqa: PLC0415
    from evalscope.api.model import ModelOutput  # noqa: PLC0415

    with file.open(encoding="utf-8") as lines:
        known = {row["id"]: row["sample"] for row in map(json.loads, lines)}

    def judge(record: Mapping[str, Any]) -> dict[str, Any]:
        sample = Sample.model_validate(known[record["id"]])
        state = TaskState(
            model="motab",
            sample=sample,
            messages=sample.input,
            output=ModelOutput.from_content("motab", record["output"]),
            completed=True,
        )
        score = adapter.calculate_metrics(state).score
        success = next((one for one in SUCCESS if one in score.value), None)
        if not score.status.is_usable or success is None:
            why = score.explanation or "; ".join(map(str, score.metadata.values())) or "no reason"
            return judgement(fault=f"EvalScope gives no score: {' '.join(why.split())}")
        is_right = score.value[success] == 1
        if len(score.value) == 1:
            return judgement(predicted=score.extracted_prediction, correct=is_right)
        # Instructions are checked on the whole output, which is not an answer found in it.
        scores = {key: float(value) for key, value in score.value.items()}
        return judgement(correct=is_right, scores=scores)

    return judge


def _find_punkt() -> None:
    """Find NLTK's sentence splitter, in an installed package if there is one, else by download."""
    import nltk  # noqa: PLC0415
    from evalscope.utils.resource_utils import check_nltk_data  # noqa: PLC0415

    with suppress(PackageNotFoundError):
        package = distribution("llama-index-core")
        nltk.data.path.append(str(package.locate_file("llama_index/core/_static/nltk_cache")))
    try:
        check_nltk_data("punkt_tab")
    except Exception as error:
        raise RuntimeError(
            "IFEval counts sentences with NLTK's punkt_tab, which is not installed and cannot be"
            f" downloaded; make eval-env installs it: {error}"
        ) from error


def judgement(
    predicted: str | None = None,
    correct: bool | None = None,  # noqa: FBT001 - a field of the answer
    fault: str | None = None,
    scores: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Return an answer of the protocol."""
    return {"predicted": predicted, "correct": correct, "fault": fault, "scores": scores or {}}


def serve(name: str, file: Path, seconds: float, answer: Callable[[Any], None]) -> None:
    """Judge until the input ends."""
    try:
        judge = judge_of(name, file)
    except Exception as error:  # noqa: BLE001 - EvalScope may raise anything
        answer({"fault": words(error)})
        return
    answer({"fault": None})
    for line in sys.stdin.buffer:
        bound(seconds)
        try:
            said = judge(json.loads(line))
        except Exception as error:  # noqa: BLE001 - so may its checks
            said = judgement(fault=words(error))
        answer(said)


def bound(seconds: float) -> None:
    """Let the kernel end this process if it outlives the process that would kill it."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    limit = math.ceil(usage.ru_utime + usage.ru_stime + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (limit, hard))


def words(error: Exception) -> str:
    """Return the error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:600]


def main() -> None:
    """Run a command; anything but its answers goes to standard error, whoever prints it."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    logging.disable(logging.WARNING)

    def answer(content: object) -> None:
        answers.write(f"{json.dumps(content)}\n")

    match sys.argv[1:]:
        case ["problems", name, *folder]:
            try:
                answer(problems(name, folder[0] if folder else None))
            except Exception as error:  # noqa: BLE001 - any error of a hub or a file is reported
                answer({"error": words(error)})
        case ["judge", name, file, seconds]:
            serve(name, Path(file), float(seconds), answer)


if __name__ == "__main__":
    main()
