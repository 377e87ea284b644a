"""What is there to train with, as JSON: `look.py MODEL [TEMPLATE]`.

Run in the trainer's environment, so it imports nothing of motab's. What cannot be used is told as
{"error": ...}, in one line.
"""

import json
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

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
    """Of what is installed and matters."""
    found = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def look(model: str, template: str | None) -> dict[str, Any]:
    """The object to print."""
    found = versions()
    if "llamafactory" not in found:
        return {"error": "environment: llamafactory is not installed in it"}
    import torch  # noqa: PLC0415
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415

    try:
        config = AutoConfig.from_pretrained(model)
        tokenizer = AutoTokenizer.from_pretrained(model)
        with torch.device("meta"):
            empty = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # noqa: BLE001 - a hub, a file, a parser: whatever it says is told
        return {"error": f"model: {model}: {' '.join(str(error).split())[:400]}"}
    if template is not None:
        from llamafactory.data.template import TEMPLATES  # noqa: PLC0415

        if template not in TEMPLATES:
            return {"error": f"template: LLaMA-Factory has no '{template}'"}
    elif tokenizer.chat_template is None:
        return {"error": f"template is missing: the tokenizer of {model} has no chat template"}
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return {
        "versions": found,
        "gpus": [{"name": gpu.name, "bytes": gpu.total_memory} for gpu in gpus],
        "num_parameters": sum(weights.numel() for weights in empty.parameters()),
        "max_positions": getattr(config, "max_position_embeddings", None),
    }


def main() -> None:
    """Print one line."""
    model, *template = sys.argv[1:]
    print(json.dumps(look(model, template[0] if template else None)))  # noqa: T201


if __name__ == "__main__":
    main()
