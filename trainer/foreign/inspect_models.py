"""Prints what there is to train with, as JSON: `MODEL [--template NAME] [--teacher MODEL]`.

It runs in the trainer's environment, so it imports nothing of motab's. A model that cannot be
used is reported as {"error": ...}, in one line.
"""

import argparse
import json
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

PACKAGES = (
    "llamafactory",
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "deepspeed",
    "flash-attn",
    "liger-kernel",
)


def versions() -> dict[str, str]:
    """Return the versions of the installed packages that matter."""
    found = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


class Unusable(Exception):
    """Cannot be used; the message is shown to the user."""


def load(key: str, name: str) -> "tuple[PretrainedConfig, PreTrainedTokenizerBase, int]":
    """Return the model's configuration, its tokenizer and its number of weights."""
    import torch  # noqa: PLC0415
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415

    try:
        config = AutoConfig.from_pretrained(name)
        tokenizer = AutoTokenizer.from_pretrained(name)
        with torch.device("meta"):
            empty = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # any error of a hub, a file or a parser is reported
        raise Unusable(f"{key}: {name}: {' '.join(str(error).split())[:400]}") from error
    return config, tokenizer, sum(weights.numel() for weights in empty.parameters())


def check_template(model: str, tokenizer: "PreTrainedTokenizerBase", template: str | None) -> None:
    """Check that messages can be turned into text."""
    if template is None:
        if tokenizer.chat_template is None:
            raise Unusable(f"template is missing: the tokenizer of {model} has no chat template")
        return
    from llamafactory.data.template import TEMPLATES  # noqa: PLC0415

    if template not in TEMPLATES:
        raise Unusable(f"template: LLaMA-Factory has no '{template}'")


def check_vocabularies(
    model: str, tokenizer: "PreTrainedTokenizerBase", teacher: str, other: "PreTrainedTokenizerBase"
) -> None:
    """Check that the same tokens have the same numbers."""
    ours, theirs = tokenizer.get_vocab(), other.get_vocab()
    if ours == theirs:
        return
    shared = sum(theirs.get(token) == number for token, number in ours.items())
    raise Unusable(
        f"loss.teacher: {teacher} and {model} have different vocabularies ({len(theirs)} and"
        f" {len(ours)} tokens, {shared} the same), but on_policy compares them token by token; use"
        " a teacher of the student's family, or learn from its text: loss.kind sft on the records"
        " of motab synth"
    )


def look(model: str, template: str | None, teacher: str | None) -> dict[str, Any]:
    """Return the object to print."""
    found = versions()
    needed = "llamafactory" if teacher is None else "trl"
    if needed not in found:
        raise Unusable(f"environment: {needed} is not installed in it")
    import torch  # noqa: PLC0415

    config, tokenizer, num_parameters = load("model", model)
    check_template(model, tokenizer, template)
    positions, teacher_parameters = [getattr(config, "max_position_embeddings", None)], 0
    if teacher is not None:
        config, other, teacher_parameters = load("loss.teacher", teacher)
        check_vocabularies(model, tokenizer, teacher, other)
        positions.append(getattr(config, "max_position_embeddings", None))
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return {
        "versions": found,
        "gpus": [{"name": gpu.name, "bytes": gpu.total_memory} for gpu in gpus],
        "num_parameters": num_parameters,
        "max_positions": min((one for one in positions if one is not None), default=None),
        "teacher_parameters": teacher_parameters,
    }


def main() -> None:
    """Print one line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--template")
    parser.add_argument("--teacher")
    try:
        found = look(**vars(parser.parse_args()))
    except Unusable as error:
        found = {"error": str(error)}
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main()
