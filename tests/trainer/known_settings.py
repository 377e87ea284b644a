"""Say which keys of settings files LLaMA-Factory does not know: `known_settings.py FILE...`.

Run in the trainer's environment. Prints an object with a list for every file, as JSON.
"""

import dataclasses
import json
import sys
from pathlib import Path

import yaml
from llamafactory.data.template import TEMPLATES
from llamafactory.hparams import DataArguments, FinetuningArguments, ModelArguments
from llamafactory.hparams.training_args import TrainingArguments

CLASSES = (ModelArguments, DataArguments, TrainingArguments, FinetuningArguments)


def main() -> None:
    known = {field.name for one in CLASSES for field in dataclasses.fields(one)}
    found = {}
    for path in sys.argv[1:]:
        settings = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        unknown = sorted(settings.keys() - known)
        if settings.get("template", "empty") not in TEMPLATES:
            unknown.append(f"template {settings['template']}")
        found[Path(path).stem] = unknown
    sys.stdout.write(f"\n{json.dumps(found)}")


if __name__ == "__main__":
    main()
