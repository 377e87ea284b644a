"""Unpacks a GGUF file into a Hugging Face folder in float32, which vLLM serves.

Run in the servers' environment: `unpack_weights.py GGUF_FILE FOLDER`.
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig


def main() -> None:
    """Run the command; see the module's docstring."""
    gguf, folder = map(Path, sys.argv[1:])
    where = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    # Quantised weights could not be saved again.
    config = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        **where, dtype=torch.float32, quantization_config=config
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**where).save_pretrained(folder)


if __name__ == "__main__":
    main()
