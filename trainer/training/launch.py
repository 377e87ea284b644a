"""Runs LLaMA-Factory or TRL, and ends it."""

import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from types import FrameType
from typing import Final

from synth_client.files.atomic import output_errors
from trainer.environments import FOREIGN, Trainer, trainer_variables
from trainer.errors import TrainerMissing, TrainingFailed
from trainer.training.recipe import CpuHardware, GpuHardware, Hardware
from trainer.training.run_folder import SETTINGS_FILES, RunFolder

_DISTILL: Final = FOREIGN / "train_on_policy.py"
_WEIGHTED: Final = FOREIGN / "train_weighted.py"
_NAMES: Final[dict[Trainer, str]] = {"llamafactory": "LLaMA-Factory", "trl": "TRL"}
_TICK_S: Final = 0.5
_GRACE_S: Final = 15.0
_TAIL_LINES: Final = 30
_TAIL_BYTES: Final = 65_536
_TORCHRUN: Final = "torch/distributed/elastic/multiprocessing/api.py"
_WORKER_KILLED: Final = "failed (exitcode: -9)"
_ERROR: Final = re.compile(r"(?:\[rank\d+\]: ?)?([A-Za-z_.]+(?:Error|Exception): .+)")
_OUT_OF_MEMORY: Final = (
    "OutOfMemoryError",
    "CUDA out of memory",
    "can't allocate memory",
    "Cannot allocate memory",
    "MemoryError",
)


def command_of(
    python: Path, trainer: Trainer, hardware: Hardware, *, weighted: bool = False
) -> list[str]:
    """Return the command, which runs in the output folder: LLaMA-Factory splits torchrun's
    arguments at blanks, and paths may contain blanks.
    """
    if trainer == "llamafactory" and not weighted:
        command = [str(python.with_name("llamafactory-cli")), "train"]
    else:
        command = [str(python), str(_WEIGHTED if weighted else _DISTILL)]
        if _wants_torchrun(hardware):
            torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
            command[1:1] = [*torchrun, str(hardware.num_devices)]
    return [*command, SETTINGS_FILES[trainer]]


def _wants_torchrun(hardware: Hardware) -> bool:
    """Return whether to use torchrun, which DeepSpeed needs even on a single GPU."""
    return hardware.num_devices > 1 or (isinstance(hardware, GpuHardware) and hardware.zero3)


def devices_of(hardware: Hardware, trainer: Trainer = "llamafactory") -> dict[str, str]:
    """Return the variables that choose the devices and, for LLaMA-Factory, their number."""
    found: dict[str, str] = {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if isinstance(hardware, CpuHardware):
        found["CUDA_VISIBLE_DEVICES"] = ""
        if hardware.processes > 1:
            threads = max(1, (os.cpu_count() or 1) // hardware.processes)
            found["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", str(threads))
    elif isinstance(hardware, GpuHardware):
        names = visible.split(",") if visible else [str(index) for index in range(hardware.gpus)]
        found["CUDA_VISIBLE_DEVICES"] = ",".join(names[: hardware.gpus])
    if trainer == "llamafactory" and _wants_torchrun(hardware):
        found |= {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": str(hardware.num_devices)}
    return found


@dataclass(frozen=True, slots=True)
class Program:
    """The command to run, with the variables that choose its devices."""

    trainer: Trainer
    python: Path
    command: list[str]
    devices: dict[str, str]


def program_of(
    trainer: Trainer, python: Path, hardware: Hardware, *, weighted: bool = False
) -> Program:
    """Return the program that trains; `weighted` means LLaMA-Factory with our loss."""
    command = command_of(python, trainer, hardware, weighted=weighted)
    return Program(trainer, python, command, devices_of(hardware, trainer))


def launch(folder: RunFolder, program: Program, on_tick: Callable[[], None]) -> None:
    """Train to the end. Raises `TrainingFailed`, or KeyboardInterrupt after ending on request."""
    begin = folder.log.stat().st_size if folder.log.exists() else 0
    with _asked_to_end() as is_asked:
        process = _started(folder, program)
        try:
            code = _waited(process, is_asked, on_tick)
        finally:
            if process.poll() is None:
                _end(process)
            on_tick()
    if is_asked():
        raise KeyboardInterrupt
    if code:
        said = _said(folder.log, begin)
        raise TrainingFailed(
            _reason(_NAMES[program.trainer], code, said),
            exit_code=code if code > 0 else 128 - code,
            tail="\n".join(said[-_TAIL_LINES:]),
        )


def _started(folder: RunFolder, program: Program) -> subprocess.Popen[bytes]:
    with output_errors(folder.log), folder.log.open("ab") as log:
        try:
            return subprocess.Popen(  # noqa: S603 - the user's own interpreter
                program.command,
                cwd=folder.path,
                env={**trainer_variables(program.python, program.trainer), **program.devices},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C is for us, and we end the trainer in an orderly way.
                start_new_session=True,
                pass_fds=(folder.lock,),
            )
        except OSError as error:
            raise TrainerMissing(f"{program.command[0]}: {error.strerror}") from error


def _waited(
    process: subprocess.Popen[bytes], is_asked: Callable[[], bool], on_tick: Callable[[], None]
) -> int:
    """Return its exit code, or 0 if we were asked to end it first."""
    while not is_asked():
        try:
            return process.wait(_TICK_S)
        except subprocess.TimeoutExpired:
            on_tick()
    return 0


def _end(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def _asked_to_end() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether Ctrl-C or SIGTERM came.

    The signal is only noted, not raised: between the trainer's start and our waiting for it, an
    exception would leave the trainer behind, in its own session.
    """
    asked = Event()

    def note(_number: int, _frame: FrameType | None) -> None:
        asked.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _said(path: Path, begin: int) -> list[str]:
    """Return the last lines of this session; of a line that a progress bar rewrote, the last state.

    torchrun's own report about its workers is left out, because it would bury their messages.
    """
    with output_errors(path), path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(begin, end - _TAIL_BYTES))
        lines = file.read().decode(errors="replace").split("\n")
    found: list[str] = []
    for line in lines:
        if _TORCHRUN in line:
            found.append(line)  # says how the first worker ended
            if "failed" in line:
                break
        elif line.strip():
            found.append(line.rsplit("\r", 1)[-1])
    return found


def _reason(name: str, code: int, said: list[str]) -> str:
    text = "\n".join(said)
    if any(sign in text for sign in _OUT_OF_MEMORY):
        return (
            "out of memory: use fewer tokens (training.max_tokens), a smaller hardware.per_device,"
            " zero3 on more GPUs, or a smaller model"
        )
    if code == -signal.SIGKILL or _WORKER_KILLED in text:
        return f"{name} was killed, as systems do when they run out of memory"
    if code < 0:
        return f"{name} was ended by {signal.Signals(-code).name}"
    errors = [match[1] for line in said if (match := _ERROR.fullmatch(line))]
    because = f": {errors[-1]}" if errors else ""
    return f"{name} failed with exit code {code}{because}"
