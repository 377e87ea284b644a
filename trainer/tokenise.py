"""The dataset of a loss by span: LLaMA-Factory's tokens with labels and weights of our own."""

import subprocess
from pathlib import Path
from typing import Any, Final

import orjson

from synth_client.journal import reported
from trainer.environment import variables
from trainer.errors import RecipeError, TrainingFailed
from trainer.losses import LINES
from trainer.recipe import DataLoss, WeightedLoss

_JOB: Final = "weigh.json"
_HERE: Final = Path(__file__).parent
_TAIL_LINES: Final = 30
# The settings that decide how LLaMA-Factory tokenises.
_TOKENISING: Final = (
    "stage",
    "do_train",
    "finetuning_type",
    "model_name_or_path",
    "template",
    "dataset_dir",
    "dataset",
    "cutoff_len",
    "mask_history",
    "preprocessing_num_workers",
    "overwrite_cache",
)


def weigh(folder: Path, python: Path, loss: DataLoss, settings: dict[str, Any]) -> dict[str, Any]:
    """Make the tokenised dataset of an output folder from its data; what was found on the way.

    `settings` are LLaMA-Factory's. Raises `RecipeError` where nothing is left to learn.
    """
    output = Path(settings["tokenized_path"])
    job = {
        "settings": {name: settings[name] for name in _TOKENISING if name in settings}
        # Nothing is trained, so it needs no GPU; the folder is never made.
        | {"use_cpu": True, "bf16": False, "report_to": "none", "output_dir": str(output / "none")},
        "lines": str(Path(settings["dataset_dir"]) / LINES),
        "output": str(output),
        "fit": _fit(loss),
    }
    path = folder / _JOB
    with reported(path):
        path.write_bytes(orjson.dumps(job, option=orjson.OPT_INDENT_2))
    command = [str(python), str(_HERE / "inside" / "weigh.py"), str(path)]
    done = subprocess.run(  # noqa: S603 - the user's own interpreter
        command,
        env={**variables(python, "llamafactory"), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        check=False,
    )
    lines = done.stdout.splitlines()
    try:
        found: dict[str, Any] = orjson.loads(lines[-1] if lines else b"")
    except orjson.JSONDecodeError as error:
        said = done.stderr.decode(errors="replace").strip()
        raise TrainingFailed(
            f"the data could not be tokenised (exit code {done.returncode})",
            exit_code=done.returncode or 1,
            tail="\n".join(said.splitlines()[-_TAIL_LINES:]),
        ) from error
    if "error" in found:
        raise RecipeError(found["error"])
    return found


def _fit(loss: DataLoss) -> dict[str, Any] | None:
    if not isinstance(loss, WeightedLoss):
        return None
    return loss.model_dump(include={"level", "power", "clip_low", "clip_high"})
