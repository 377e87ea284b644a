"""All of a training but LLaMA-Factory, in whose place stands a script (tests/trainer has it)."""

import os
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from rich.console import Console

from synth_client.errors import InputError
from synth_client.training_data.export import Export, export
from synth_client.training_data.filters import Filters
from tests.support.records import breached, record_of, unbroken
from trainer.environments import trainer_python
from trainer.errors import RecipeError, RunExists, TrainerMissing, TrainingFailed
from trainer.training.dataset import prepare, settle
from trainer.training.hardware import Environment, Gpu, fitted, inspect_environment
from trainer.training.launch import command_of, devices_of
from trainer.training.progress import Losses, sparkline
from trainer.training.recipe import CpuHardware, ExportData, GpuHardware, Recipe, RecordsData
from trainer.training.run_folder import RunFolder, opened
from trainer.training.train import Trained, train

FOUND = {
    "versions": {"llamafactory": "0.9.5", "torch": "2.13.0"},
    "gpus": [],
    "num_parameters": 1000,
    "max_positions": 4096,
}
# Writes a checkpoint and tells a loss, as LLaMA-Factory does.
STEP = """mkdir -p model/checkpoint-3
echo '{"current_steps": 3, "total_steps": 6, "loss": 1.5}' >> model/trainer_log.jsonl
echo '{}' > model/checkpoint-3/trainer_state.json
"""
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


class Scripted:
    """An environment whose programs are shell scripts, and a recipe for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / "bin" / "python"
        self.python.parent.mkdir()
        self.output = folder / "out"
        self.records = folder / "records.jsonl"
        self.records.write_bytes(
            record_of(breached()).to_json_line() + record_of(unbroken()).to_json_line()
        )
        model = folder / "model"
        model.mkdir()
        (model / "config.json").touch()
        self.finds(FOUND)
        self.trains(STEP)

    def finds(self, found: dict[str, Any]) -> None:
        self._write("python", f"echo noise; echo '{orjson.dumps(found).decode()}'")

    def distils(self, script: str) -> None:
        """The same Python is asked what is there, and runs TRL."""
        asked = f"echo '{orjson.dumps(FOUND).decode()}'"
        self._write("python", f"case $1 in *inspect_models.py) {asked};; *) {script};; esac")

    def trains(self, script: str) -> None:
        self._write("llamafactory-cli", script)

    def _write(self, name: str, script: str) -> None:
        path = self.python.with_name(name)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def recipe(self, **changes: Any) -> Recipe:
        fields: dict[str, Any] = {
            "model": str(self.folder / "model"),
            "data": {"kind": "records", "path": str(self.records)},
            "training": {"max_tokens": 512},
            "hardware": {"kind": "cpu"},
            "output": str(self.output),
        }
        return Recipe.model_validate(fields | changes)

    def on_policy(self, **changes: Any) -> dict[str, Any]:
        """What a recipe has to change to distil."""
        teacher = str(self.folder / "model")
        loss = {"kind": "on_policy", "teacher": teacher, "max_new_tokens": 64}
        return {"loss": loss, "training": {"max_tokens": 512, "batch_size": 2}} | changes

    def train(self, *, resume: bool = True, **changes: Any) -> Trained:
        with (self.folder / "said").open("a", encoding="utf-8") as file:
            console = Console(file=file)
            recipe = self.recipe(**changes)
            return train(recipe, python=self.python, resume=resume, console=console)

    @property
    def run(self) -> dict[str, Any]:
        found: dict[str, Any] = orjson.loads((self.output / "run.json").read_bytes())
        return found


@pytest.fixture
def scripted(tmp_path: Path) -> Scripted:
    return Scripted(tmp_path)


def test_what_was_run_stands_beside_the_result(scripted: Scripted) -> None:
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


def test_on_policy_is_trained_by_trl_in_the_same_kind_of_folder(scripted: Scripted) -> None:
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


def test_what_cannot_be_distilled_is_told_before_anything_runs(scripted: Scripted) -> None:
    few = scripted.on_policy(training={"max_tokens": 1024, "batch_size": 3})
    with pytest.raises(RecipeError, match=r"^training\.batch_size: 3 is more than the 2 examples"):
        scripted.train(**few)
    loss = {"kind": "on_policy", "teacher": "./none"}
    with pytest.raises(RecipeError, match=r"^loss\.teacher: \./none: no such folder"):
        scripted.train(**scripted.on_policy(loss=loss, training={"batch_size": 2}))
    assert not scripted.output.exists()
    folder = scripted.folder / "alpaca"
    export(Export(source=scripted.records, output=folder, format="alpaca", filters=Filters(())))
    info = {"motab": {"file_name": "train.jsonl"}}
    (folder / "dataset_info.json").write_bytes(orjson.dumps(info))
    data = {"kind": "export", "path": str(folder)}
    with pytest.raises(RecipeError, match=r"^data\.dataset: 'motab' in .* not in motab's own form"):
        scripted.train(**scripted.on_policy(data=data))


def test_a_failure_gives_its_exit_code_and_the_tail_of_its_log(scripted: Scripted) -> None:
    scripted.trains("seq 1 100; echo 'ValueError: no'; exit 3")
    with pytest.raises(TrainingFailed, match=r"failed with exit code 3: ValueError: no$") as caught:
        scripted.train()
    assert caught.value.exit_code == 3
    assert caught.value.tail.splitlines() == [*map(str, range(72, 101)), "ValueError: no"]
    assert scripted.run["sessions"][0]["exit_code"] == 3


@pytest.mark.parametrize(
    ("script", "sentence", "code"),
    [
        ("echo 'torch.OutOfMemoryError: CUDA out of memory.'; exit 1", "out of memory: take", 1),
        ("kill -9 $$", "killed, as systems do that run out of memory", 137),
        ("kill -11 $$", "ended by SIGSEGV", 139),
        ("cat ../torchrun-killed; exit 1", "killed, as systems do that run out of memory", 1),
    ],
)
def test_running_out_of_memory_is_told_as_such(
    script: str, sentence: str, code: int, scripted: Scripted
) -> None:
    (scripted.folder / "torchrun-killed").write_text(
        TORCHRUN.replace("exitcode: 1", "exitcode: -9"), encoding="utf-8"
    )
    scripted.trains(script)
    with pytest.raises(TrainingFailed, match=sentence) as caught:
        scripted.train()
    assert caught.value.exit_code == code


def test_torchruns_account_does_not_bury_what_a_worker_said(scripted: Scripted) -> None:
    (scripted.folder / "torchrun").write_text(TORCHRUN, encoding="utf-8")
    scripted.trains("cat ../torchrun; exit 1")
    with pytest.raises(TrainingFailed, match=r"exit code 1: KeyError: 'messages'$") as caught:
        scripted.train()
    assert "[rank0]: KeyError: 'messages'" in caught.value.tail
    assert "ChildFailedError" not in caught.value.tail


def test_it_goes_on_with_the_last_whole_checkpoint(scripted: Scripted) -> None:
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


def test_a_log_without_a_checkpoint_is_cleared_away(scripted: Scripted) -> None:
    scripted.trains("mkdir model; touch model/trainer_log.jsonl; exit 1")
    with pytest.raises(TrainingFailed):
        scripted.train()
    scripted.trains("test ! -e model")
    scripted.train()


def test_what_is_done_is_not_done_again_unless_asked(scripted: Scripted) -> None:
    scripted.train()
    scripted.trains("exit 1")
    assert scripted.train() == Trained(scripted.output / "model", {3: 1.5}, was_done=True)
    with pytest.raises(TrainingFailed):
        scripted.train(resume=False)
    assert not (scripted.output / "model").exists()


def test_another_recipe_or_other_data_do_not_go_on_with_it(scripted: Scripted) -> None:
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


def test_other_checkpoints_are_no_other_training(scripted: Scripted) -> None:
    scripted.train()
    assert scripted.train(training={"max_tokens": 512, "save_every": 7}).was_done


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_the_trainer_and_all_that_it_started(
    number: signal.Signals, scripted: Scripted
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
    thread.join(timeout=20)
    assert ended.is_set()
    assert scripted.run["sessions"][0]["exit_code"] == 130
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_nothing_is_left_where_nothing_was_run(scripted: Scripted) -> None:
    data = {"kind": "records", "path": str(scripted.records), "filters": ["correct", "no-breach"]}
    with pytest.raises(InputError, match="no record is left to export; correct dropped 1"):
        scripted.train(data=data)
    scripted.finds(FOUND | {"max_positions": 8})
    with pytest.raises(RecipeError, match="max_tokens: 512 is more than the 8 positions"):
        scripted.train()
    assert not scripted.output.exists()


def test_a_folder_with_something_else_in_it_is_refused(scripted: Scripted) -> None:
    scripted.output.mkdir()
    (scripted.output / "thesis.tex").touch()
    with pytest.raises(RunExists, match="is not empty and holds no training"):
        scripted.train()
    assert [path.name for path in scripted.output.iterdir()] == ["thesis.tex"]


def test_two_do_not_train_in_one_folder(scripted: Scripted) -> None:
    with opened(scripted.output), pytest.raises(RunExists, match="another process trains there"):
        scripted.train()


def test_an_environment_that_is_missing_or_broken_is_told(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TrainerMissing, match="no such program"):
        trainer_python(scripted.folder)
    monkeypatch.chdir(scripted.folder)
    monkeypatch.setattr("trainer.environments._SOURCE", scripted.folder / "trainer")
    with pytest.raises(TrainerMissing, match=r"there is no \.venv-trainer here; make train-env"):
        trainer_python(None)
    with pytest.raises(TrainerMissing, match=r"no \.venv-reference here; make distill-env makes"):
        trainer_python(None, "trl")
    scripted.python.write_text("#!/bin/sh\necho 'ImportError: torch' >&2; exit 1\n")
    with pytest.raises(TrainerMissing, match="cannot be used to train: ImportError: torch"):
        inspect_environment(scripted.python, scripted.recipe())
    scripted.finds({"error": "environment: llamafactory is not installed in it"})
    with pytest.raises(TrainerMissing, match="bin/python: llamafactory is not installed in it"):
        inspect_environment(scripted.python, scripted.recipe())


@pytest.mark.parametrize("model", ["./none", "/none", "~/none", "none", "a/b/c"])
def test_a_model_that_is_nowhere_is_told(model: str, scripted: Scripted) -> None:
    with pytest.raises(RecipeError, match=f"^model: {model}: no such folder, nor a Hugging Face"):
        inspect_environment(scripted.python, scripted.recipe(model=model))


def test_a_folder_without_a_model_is_told(scripted: Scripted) -> None:
    with pytest.raises(RecipeError, match=r"it has no config\.json"):
        inspect_environment(scripted.python, scripted.recipe(model=str(scripted.folder)))


ENVIRONMENT = Environment(Path("/env/bin/python"), {"torch": "2.13.0"}, (), 10**9, None)
GPUS = replace(ENVIRONMENT, gpus=(Gpu("H100", 80 * 10**9), Gpu("H100", 80 * 10**9)))


def test_the_machine_decides_where_the_recipe_does_not(scripted: Scripted) -> None:
    small = replace(ENVIRONMENT, num_parameters=1000)
    recipe = scripted.recipe(hardware={"kind": "auto", "per_device": 2})
    assert fitted(recipe, small) == CpuHardware(kind="cpu", per_device=2)
    assert fitted(recipe, GPUS) == GpuHardware(kind="gpu", gpus=2, per_device=2)


@pytest.mark.parametrize(
    ("hardware", "environment", "sentence"),
    [
        ({"kind": "gpu", "gpus": 4}, GPUS, r"hardware\.gpus: 4 wanted, PyTorch 2\.13\.0 sees 2"),
        (
            {"kind": "gpu", "gpus": 2, "zero3": True, "liger": True, "attention": "flash2"},
            GPUS,
            "the recipe needs deepspeed, flash-attn, liger-kernel, not installed there",
        ),
        (
            {"kind": "gpu", "gpus": 2},
            replace(GPUS, num_parameters=8 * 10**9),
            "8,000,000,000 parameters take 128.0 GB, each GPU has 80.0",
        ),
        ({"kind": "cpu"}, replace(ENVIRONMENT, num_parameters=10**12), "take 16000.0 GB, this"),
        ({"kind": "auto", "per_device": 5}, GPUS, "batch_size: 32 cannot be divided by the 10"),
    ],
)
def test_what_the_machine_lacks_is_told_before_anything_runs(
    hardware: dict[str, Any], environment: Environment, sentence: str, scripted: Scripted
) -> None:
    with pytest.raises((RecipeError, TrainerMissing), match=sentence):
        fitted(scripted.recipe(hardware=hardware), environment)


def test_a_teacher_takes_memory_too(scripted: Scripted) -> None:
    recipe = scripted.recipe(**scripted.on_policy(hardware={"kind": "gpu", "gpus": 1}))
    both = replace(GPUS, teacher_parameters=32 * 10**9)
    with pytest.raises(RecipeError, match=r"teacher's 32,000,000,000 weights take 80\.0 GB"):
        fitted(recipe, replace(both, num_parameters=10**9, gpus=(Gpu("small", 10**9),)))


def test_zero3_divides_what_the_gpus_hold(scripted: Scripted) -> None:
    hardware = {"kind": "gpu", "gpus": 2, "zero3": True}
    large = replace(GPUS, num_parameters=8 * 10**9, versions={"deepspeed": "0.18"})
    assert fitted(scripted.recipe(hardware=hardware), large).num_devices == 2


def test_several_devices_and_deepspeed_are_for_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert devices_of(CpuHardware(kind="cpu")) == {"CUDA_VISIBLE_DEVICES": ""}
    assert devices_of(CpuHardware(kind="cpu", processes=2))["NPROC_PER_NODE"] == "2"
    assert devices_of(GpuHardware(kind="gpu", gpus=1)) == {"CUDA_VISIBLE_DEVICES": "0"}
    assert devices_of(GpuHardware(kind="gpu", gpus=1, zero3=True))["NPROC_PER_NODE"] == "1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,3,1")
    assert devices_of(GpuHardware(kind="gpu", gpus=2)) == {
        "CUDA_VISIBLE_DEVICES": "5,3",
        "FORCE_TORCHRUN": "1",
        "NPROC_PER_NODE": "2",
    }


def test_an_export_is_taken_as_it_is(scripted: Scripted) -> None:
    folder = scripted.folder / "export"
    job = Export(source=scripted.records, output=folder, format="llamafactory", filters=Filters(()))
    export(job)
    taken = prepare(ExportData(kind="export", path=folder), scripted.output)
    made = prepare(RecordsData(kind="records", path=scripted.records), scripted.output)
    assert settle(taken).folder == folder
    assert (taken.sha256, taken.num_examples) == (made.sha256, 2)


def break_info(folder: Path) -> None:
    (folder / "dataset_info.json").write_text('{"motab": {"columns": {}}}')


@pytest.mark.parametrize(
    ("spoil", "dataset", "sentence"),
    [
        (lambda folder: None, "other", "has no 'other', only motab"),
        (lambda folder: (folder / "train.jsonl").unlink(), "motab", "train.jsonl, which is not"),
        (lambda folder: (folder / "train.jsonl").write_bytes(b"\n"), "motab", "is empty"),
        (lambda folder: (folder / "dataset_info.json").unlink(), "motab", "has no dataset_info"),
        (break_info, "motab", "names no file of 'motab'"),
    ],
)
def test_an_export_that_holds_no_data_is_told(
    spoil: Callable[[Path], object], dataset: str, sentence: str, scripted: Scripted
) -> None:
    folder = scripted.folder / "export"
    export(
        Export(source=scripted.records, output=folder, format="llamafactory", filters=Filters(()))
    )
    spoil(folder)
    with pytest.raises(RecipeError, match=sentence):
        prepare(ExportData(kind="export", path=folder, dataset=dataset), scripted.output)


def test_a_filter_that_is_none_is_named(scripted: Scripted) -> None:
    data = RecordsData(kind="records", path=scripted.records, filters=("good",))
    with pytest.raises(RecipeError, match=r"^data\.filters: good: no such filter; there are corr"):
        prepare(data, scripted.output)


def test_losses_are_read_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "trainer_log.jsonl"
    losses = Losses(path)
    assert not losses.read()
    path.write_text('{"current_steps": 1, "total_steps": 9, "loss": 2.5}\n{"current_st')
    assert losses.read()
    assert (losses.by_step, losses.total) == ({1: 2.5}, 9)
    assert not losses.read()
    with path.open("a") as file:
        file.write('eps": 2, "total_steps": 9, "loss": 2.0}\n{"total_steps": 9}\n')
    assert losses.read()
    assert (losses.by_step, losses.step) == ({1: 2.5, 2: 2.0}, 2)
    losses.forget_after(1)
    assert losses.by_step == {1: 2.5}


def test_the_curve_shows_means_from_lowest_to_highest() -> None:
    assert sparkline([3.0, 3.0, 2.0, 1.0, 1.0, 1.0], width=3) == "█▃▁"
    assert sparkline([1.0, 1.0]) == "▁▁"
    assert not sparkline([])


def test_a_whole_checkpoint_is_one_whose_state_can_be_read(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for step, state in ((9, "{}"), (10, "{}"), (11, '{"ha')):
        path = tmp_path / "model" / f"checkpoint-{step}"
        path.mkdir(parents=True)
        (path / "trainer_state.json").write_text(state)
    found = folder.checkpoint()
    assert found is not None
    assert found.step == 10
    assert not (tmp_path / "model" / "checkpoint-11").exists()
