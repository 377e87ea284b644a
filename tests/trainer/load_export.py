"""Load an export as LLaMA-Factory does for training: `load_export.py EXPORT TOKENIZER OUTPUT`.

Run in the trainer's environment. Writes of every example the text of all its tokens and of
those that are learned, as JSON.
"""

import json
import sys
from pathlib import Path

from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
from llamafactory.extras.constants import IGNORE_INDEX
from llamafactory.hparams import get_train_args
from llamafactory.model import load_tokenizer


def main() -> None:
    export, tokenizer_folder, output = map(Path, sys.argv[1:])
    settings = {
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": str(tokenizer_folder),
        "dataset_dir": str(export),
        "dataset": "motab",
        "cutoff_len": 4096,
        "output_dir": str(output.parent / "model"),
        "cache_dir": str(output.parent / "cache"),
        "overwrite_cache": True,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
    }
    model_args, data_args, training_args, _, _ = get_train_args(settings)
    tokenizer = load_tokenizer(model_args)["tokenizer"]
    template = get_template_and_fix_tokenizer(tokenizer, data_args)
    module = get_dataset(template, model_args, data_args, training_args, "sft", tokenizer)
    end_of_turn = tokenizer.convert_tokens_to_ids("<|im_end|>")
    examples = []
    for example in module["train_dataset"]:
        pairs = zip(example["input_ids"], example["labels"], strict=True)
        learned = [token for token, label in pairs if label != IGNORE_INDEX]
        examples.append(
            {
                "text": tokenizer.decode(example["input_ids"]),
                "learned": tokenizer.decode(learned),
                "num_ends": example["input_ids"].count(end_of_turn),
            }
        )
    output.write_text(json.dumps(examples), encoding="utf-8")


if __name__ == "__main__":
    main()
