"""`motab reproduce --smoke`: records, export, training, serving by vLLM, evaluation; all real."""

import subprocess
import sys
from pathlib import Path

import orjson
import psutil
import pytest

from synth_client.files.record_file import read_records
from tests.support.paths import ROOT
from tests.support.patience import PATIENCE_S


def start(output: Path, log: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "motab", "reproduce", "--scale", "tiny", "--smoke"]
    command += ["--task", "sets"]
    with log.open("ab") as file:
        return subprocess.Popen(
            [*command, "--output", str(output)], cwd=ROOT, stdout=file, stderr=file
        )


@pytest.mark.timeout(3600)
def test_the_pair_makes_data_that_students_are_trained_on_served_and_measured(
    tmp_path: Path,
) -> None:
    folder, log = tmp_path / "out", tmp_path / "log"
    output = folder / "sets"
    first = start(folder, log)
    while not (output / "seed-1" / "sft" / "records.jsonl").exists():
        assert first.poll() is None, log.read_text()
        try:
            first.wait(0.2)
        except subprocess.TimeoutExpired:
            continue
    started = psutil.Process(first.pid).children(recursive=True)
    assert len(started) > 3
    first.kill()
    first.wait()
    _, alive = psutil.wait_procs(started, timeout=PATIENCE_S)
    assert not alive
    kept = (output / "seed-1" / "sft" / "records.jsonl").read_bytes()

    assert start(folder, log).wait() == 0, log.read_text()
    assert (output / "seed-1" / "sft" / "records.jsonl").read_bytes() == kept
    records = list(read_records(output / "seed-1" / "motab" / "records.jsonl"))
    assert len(records) == 24
    assert {record.scoring for record in records} == {"prompt_logprobs"}
    found = orjson.loads((output / "comparison.json").read_bytes())
    names = ["sft", "motab", "motab-rounds", "motab-best"]
    assert [one["arm"]["name"] for one in found["arms"]] == names
    best = list(read_records(output / "seed-1" / "motab-best" / "records.jsonl"))
    chosen = [(one.chosen.by, one.correct) for one in best if one.chosen is not None]
    assert len(chosen) == sum(one.breach is not None for one in best) > 0
    # The proxy judges like the client, by the rule of the task.
    assert all((by == "reference") == (correct is True) for by, correct in chosen)
    rounds = list(read_records(output / "seed-1" / "motab-rounds" / "records.jsonl"))
    assert {one.params["rounds"] for one in rounds} == {3}
    # The pair is far apart, whatever 24 samples say of each.
    assert found["pair"]["teacher"]["by_k"]["1"] > 0.7
    assert found["pair"]["student"]["by_k"]["1"] < 0.8
    assert "| MOTAB |" in (output / "comparison.md").read_text()
    assert "| SFT - base, pass@1 |" in (output / "gates.md").read_text()
    before = (output / "times.jsonl").read_bytes()
    assert start(folder, log).wait() == 0, log.read_text()
    assert (output / "times.jsonl").read_bytes() == before  # nothing was done again
