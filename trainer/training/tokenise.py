"""Makes the dataset of a loss by span: LLaMA-Factory's tokens with our labels and weights."""

from pathlib import Path
from typing import Any, Final

import orjson

from synth_client.files.atomic import write_whole
from trainer.environments import FOREIGN, ScriptFailed, ask_script, trainer_variables
from trainer.errors import RecipeError, TrainingFailed
from trainer.training.loss_spans import LINES
from trainer.training.recipe import DataLoss, WeightedLoss

_JOB: Final = "weigh.json"
_FIT: Final = {"level", "power", "clip_low", "clip_high", "discount", "renew"}
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
    """Tokenise the data of an output folder, and return what the script found on the way.

    `settings` are LLaMA-Factory's. Raises `RecipeError` if nothing is left to learn.
    """
    output = Path(settings["tokenized_path"])
    job = {
        "settings": {name: settings[name] for name in _TOKENISING if name in settings}
        # Nothing is trained, so it needs no GPU; the folder is never created.
        | {"use_cpu": True, "bf16": False, "report_to": "none", "output_dir": str(output / "none")},
        "lines": str(Path(settings["dataset_dir"]) / LINES),
        "output": str(output),
        "fit": loss.model_dump(include=_FIT) if isinstance(loss, WeightedLoss) else None,
    }
    path = folder / _JOB
    write_whole(path, orjson.dumps(job, option=orjson.OPT_INDENT_2))
    command = [str(python), str(FOREIGN / "weigh_tokens.py"), str(path)]
    variables = {**trainer_variables(python, "llamafactory"), "CUDA_VISIBLE_DEVICES": ""}
    try:
        answer = ask_script(command, variables)
    except ScriptFailed as error:
        raise TrainingFailed(
            f"the data could not be tokenised (exit code {error.exit_code})",
            exit_code=error.exit_code,
            tail=error.tail,
        ) from error
    if "error" in answer:
        raise RecipeError(answer["error"])
    return answer
