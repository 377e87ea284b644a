"""Tests all of a training but LLaMA-Factory, which a script replaces (tests/trainer has it)."""

import os
import signal
import threading
from pathlib import Path

import orjson
import pytest
import yaml

from synth_client.errors import InputError
from synth_client.training_data.export import Export, export
from synth_client.training_data.filters import Filters
from tests.support.patience import PATIENCE_S
from tests.support.records import breached, record_of
from tests.support.trainer.scripted import FOUND, STEP, ScriptedTrainer
from trainer.environments import trainer_python
from trainer.errors import RecipeError, RunExists, TrainerMissing, TrainingFailed
from trainer.training.hardware import inspect_environment
from trainer.training.launch import command_of, devices_of
from trainer.training.recipe import CpuHardware
from trainer.training.run_folder import opened
from trainer.training.train import Trained

# The last lines of torchrun 2.13.0's log, shortened.
TORCHRUN = """[rank0]:     messages = example[self.dataset_attr.messages]
[rank0]: KeyError: 'messages'
W1122 12:15:01.501000 76 site-packages/torch/distributed/elastic/multiprocessing/api.py:1028] \
Sending process 81 closing signal SIGTERM
E1122 12:15:01.615000 76 site-packages/torch/distributed/elastic/multiprocessing/api.py:1002] \
failed (exitcode: 1) local_rank: 0 (pid: 80) of binary: /env/bin/python
Traceback (most recent call last):
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
subprocess.CalledProcessError: Command '['torchrun']' returned non-zero exit status 1.
"""


def test_what_was_run_stands_beside_the_result(scripted: ScriptedTrainer) -> None:
    done = scripted.train()
    assert done == Trained(scripted.output / "model", {3: 1.5}, was_done=False)
    run = scripted.run
    assert run["recipe"] == scripted.recipe().model_dump(mode="json")
    assert run["data"]["num_examples"] == 2
    assert len(run["data"]["sha256"]) == 64
    assert run["versions"] == FOUND["versions"]
    (session,) = run["sessions"]
    assert session["command"][1:] == ["train", "llamafactory.yaml"]
    assert (session["resumed_from"], session["exit_code"]) == (None, 0)
    assert {"data", "model", "train.log", "recipe.yaml", "llamafactory.yaml"} <= {
        path.name for path in scripted.output.iterdir()
    }


def test_on_policy_is_trained_by_trl_in_the_same_kind_of_folder(scripted: ScriptedTrainer) -> None:
    scripted.distils(STEP + "mkdir model/checkpoint-4; echo 'ValueError: no'; exit 3")
    with pytest.raises(TrainingFailed, match=r"^TRL failed with exit code 3: ValueError: no$"):
        scripted.train(**scripted.on_policy())
    scripted.distils("cp trl.yaml second.yaml")
    assert scripted.train(**scripted.on_policy()).by_step == {3: 1.5}
    settings = yaml.safe_load((scripted.output / "second.yaml").read_text(encoding="utf-8"))
    model = scripted.output / "model"
    assert settings["resume_from_checkpoint"] == str(model / "checkpoint-3")
    assert settings["data"] == str(scripted.output / "data" / "train.jsonl")
    assert settings["teacher"] == str(scripted.folder / "model")
    arguments = settings["arguments"]
    assert (arguments["lmbda"], arguments["beta"], arguments["loss_top_k"]) == (1.0, 1.0, 0)
    assert (arguments["max_length"], arguments["max_completion_length"]) == (512, 64)
    assert (arguments["use_cpu"], arguments["bf16"]) == (True, False)
    assert arguments["output_dir"] == str(model)
    assert [one["command"][2:] for one in scripted.run["sessions"]] == [["trl.yaml"]] * 2


def test_trl_runs_on_several_devices_by_torchrun() -> None:
    python = Path("/env/bin/python")
    alone = command_of(python, "trl", CpuHardware(kind="cpu"))
    (first, *middle, script, settings) = command_of(
        python, "trl", CpuHardware(kind="cpu", processes=2)
    )
    assert [first, script, settings] == alone
    assert middle == ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    assert "NPROC_PER_NODE" not in devices_of(CpuHardware(kind="cpu", processes=2), "trl")


def test_what_cannot_be_distilled_is_told_before_anything_runs(scripted: ScriptedTrainer) -> None:
    few = scripted.on_policy(training={"max_tokens": 1024, "batch_size": 3})
    with pytest.raises(RecipeError, match=r"^training\.batch_size: 3 is more than the 2 examples"):
        scripted.train(**few)
    loss = {"kind": "on_policy", "teacher": "./none"}
    with pytest.raises(RecipeError, match=r"^loss\.teacher: \./none: neither a folder"):
        scripted.train(**scripted.on_policy(loss=loss, training={"batch_size": 2}))
    assert not scripted.output.exists()
    folder = scripted.folder / "alpaca"
    export(Export(source=scripted.records, output=folder, format="alpaca", filters=Filters(())))
    info = {"motab": {"file_name": "train.jsonl"}}
    (folder / "dataset_info.json").write_bytes(orjson.dumps(info))
    data = {"kind": "export", "path": str(folder)}
    with pytest.raises(RecipeError, match=r"^data\.dataset: 'motab' in .* not in motab's own form"):
        scripted.train(**scripted.on_policy(data=data))


def test_a_failure_gives_its_exit_code_and_the_tail_of_its_log(scripted: ScriptedTrainer) -> None:
    scripted.trains("seq 1 100; echo 'ValueError: no'; exit 3")
    with pytest.raises(TrainingFailed, match=r"failed with exit code 3: ValueError: no$") as caught:
        scripted.train()
    assert caught.value.exit_code == 3
    assert caught.value.tail.splitlines() == [*map(str, range(72, 101)), "ValueError: no"]
    assert scripted.run["sessions"][0]["exit_code"] == 3


@pytest.mark.parametrize(
    ("script", "sentence", "code"),
    [
        ("echo 'torch.OutOfMemoryError: CUDA out of memory.'; exit 1", "out of memory: use", 1),
        ("kill -9 $$", "killed, as systems do when they run out of memory", 137),
        ("kill -11 $$", "ended by SIGSEGV", 139),
        ("cat ../torchrun-killed; exit 1", "killed, as systems do when they run out of memory", 1),
    ],
)
def test_running_out_of_memory_is_told_as_such(
    script: str, sentence: str, code: int, scripted: ScriptedTrainer
) -> None:
    (scripted.folder / "torchrun-killed").write_text(
        TORCHRUN.replace("exitcode: 1", "exitcode: -9"), encoding="utf-8"
    )
    scripted.trains(script)
    with pytest.raises(TrainingFailed, match=sentence) as caught:
        scripted.train()
    assert caught.value.exit_code == code


def test_torchruns_account_does_not_bury_what_a_worker_said(scripted: ScriptedTrainer) -> None:
    (scripted.folder / "torchrun").write_text(TORCHRUN, encoding="utf-8")
    scripted.trains("cat ../torchrun; exit 1")
    with pytest.raises(TrainingFailed, match=r"exit code 1: KeyError: 'messages'$") as caught:
        scripted.train()
    assert "[rank0]: KeyError: 'messages'" in caught.value.tail
    assert "ChildFailedError" not in caught.value.tail


def test_it_goes_on_with_the_last_whole_checkpoint(scripted: ScriptedTrainer) -> None:
    scripted.trains(STEP + "mkdir model/checkpoint-4; exit 1")
    with pytest.raises(TrainingFailed):
        scripted.train()
    scripted.trains("cp llamafactory.yaml second.yaml; ls model > seen")
    scripted.train()
    checkpoint = scripted.output / "model" / "checkpoint-3"
    assert f"resume_from_checkpoint: {checkpoint}\n" in (scripted.output / "second.yaml").read_text(
        encoding="utf-8"
    )
    assert (scripted.output / "seen").read_text() == "checkpoint-3\ntrainer_log.jsonl\n"
    assert [one["resumed_from"] for one in scripted.run["sessions"]] == [None, 3]


def test_a_log_without_a_checkpoint_is_cleared_away(scripted: ScriptedTrainer) -> None:
    scripted.trains("mkdir model; touch model/trainer_log.jsonl; exit 1")
    with pytest.raises(TrainingFailed):
        scripted.train()
    scripted.trains("test ! -e model")
    scripted.train()


def test_what_is_done_is_not_done_again_unless_asked(scripted: ScriptedTrainer) -> None:
    scripted.train()
    scripted.trains("exit 1")
    assert scripted.train() == Trained(scripted.output / "model", {3: 1.5}, was_done=True)
    with pytest.raises(TrainingFailed):
        scripted.train(resume=False)
    assert not (scripted.output / "model").exists()


def test_another_recipe_or_other_data_do_not_go_on_with_it(scripted: ScriptedTrainer) -> None:
    scripted.train()
    before = (scripted.output / "data" / "train.jsonl").read_bytes()
    with pytest.raises(RunExists, match=r"\(training\.epochs was 6\.0, is 2\.0\); choose another"):
        scripted.train(training={"max_tokens": 512, "epochs": 2})
    data = {"kind": "records", "path": str(scripted.records), "filters": ["breach"]}
    with pytest.raises(RunExists, match="data was"):
        scripted.train(data=data)
    scripted.records.write_bytes(record_of(breached()).to_json_line())
    with pytest.raises(RunExists, match="sha256 of the data was"):
        scripted.train()
    assert (scripted.output / "data" / "train.jsonl").read_bytes() == before
    assert not (scripted.output / "data.next").exists()
    assert scripted.train(training={"max_tokens": 512}, resume=False).was_done is False


def test_other_checkpoints_are_no_other_training(scripted: ScriptedTrainer) -> None:
    scripted.train()
    assert scripted.train(training={"max_tokens": 512, "save_every": 7}).was_done


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_the_trainer_and_all_that_it_started(
    number: signal.Signals, scripted: ScriptedTrainer
) -> None:
    pipe = scripted.folder / "pipe"
    os.mkfifo(pipe)
    # Whoever holds the pipe open lives; both shells do until they are ended.
    scripted.trains(f"exec 9> {pipe}; (sleep 600) & wait")
    ended = threading.Event()

    def interrupt() -> None:
        with pipe.open("rb") as file:  # opens when the trainer has
            os.kill(os.getpid(), number)
            file.read()
        ended.set()

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        scripted.train()
    thread.join(PATIENCE_S)
    assert ended.is_set()
    assert scripted.run["sessions"][0]["exit_code"] == 130
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_nothing_is_left_where_nothing_was_run(scripted: ScriptedTrainer) -> None:
    data = {"kind": "records", "path": str(scripted.records), "filters": ["correct", "no-breach"]}
    with pytest.raises(InputError, match="no record is left to export; correct dropped 1"):
        scripted.train(data=data)
    scripted.finds(FOUND | {"max_positions": 8})
    with pytest.raises(RecipeError, match="max_tokens: 512 is more than the 8 positions"):
        scripted.train()
    assert not scripted.output.exists()


def test_a_folder_with_something_else_in_it_is_refused(scripted: ScriptedTrainer) -> None:
    scripted.output.mkdir()
    (scripted.output / "thesis.tex").touch()
    with pytest.raises(RunExists, match="is not empty and is not a training"):
        scripted.train()
    assert [path.name for path in scripted.output.iterdir()] == ["thesis.tex"]


def test_two_do_not_train_in_one_folder(scripted: ScriptedTrainer) -> None:
    with opened(scripted.output), pytest.raises(RunExists, match="another process trains there"):
        scripted.train()


def test_an_environment_that_is_missing_or_broken_is_told(
    scripted: ScriptedTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TrainerMissing, match="no such program"):
        trainer_python(scripted.folder)
    monkeypatch.chdir(scripted.folder)
    monkeypatch.setattr("trainer.environments._SOURCE", scripted.folder / "trainer")
    with pytest.raises(TrainerMissing, match=r"there is no \.venv-trainer here; make train-env"):
        trainer_python(None)
    with pytest.raises(
        TrainerMissing, match=r"no \.venv-reference here; make distill-env in motab's source makes"
    ):
        trainer_python(None, "trl")
    scripted.python.write_text("#!/bin/sh\necho 'ImportError: torch' >&2; exit 1\n")
    with pytest.raises(TrainerMissing, match="cannot be used to train: ImportError: torch"):
        inspect_environment(scripted.python, scripted.recipe())
    scripted.finds({"error": "environment: llamafactory is not installed in it"})
    with pytest.raises(TrainerMissing, match="bin/python: llamafactory is not installed in it"):
        inspect_environment(scripted.python, scripted.recipe())


@pytest.mark.parametrize("model", ["./none", "/none", "~/none", "none", "a/b/c"])
def test_a_model_that_is_nowhere_is_told(model: str, scripted: ScriptedTrainer) -> None:
    with pytest.raises(RecipeError, match=f"^model: {model}: neither a folder nor a Hugging Face"):
        inspect_environment(scripted.python, scripted.recipe(model=model))


def test_a_folder_without_a_model_is_told(scripted: ScriptedTrainer) -> None:
    with pytest.raises(RecipeError, match=r"it has no config\.json"):
        inspect_environment(scripted.python, scripted.recipe(model=str(scripted.folder)))
