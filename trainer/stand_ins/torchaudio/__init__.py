"""Stands in for torchaudio, which LLaMA-Factory imports even if no audio is used.

PyPI's torchaudio does not load next to the CPU build of torch. With the parent folder on PYTHONPATH
this module is found in its place; any use of it fails with a message.
"""

from typing import NoReturn


def __getattr__(name: str) -> NoReturn:
    raise AttributeError(f"torchaudio.{name}: torchaudio is not installed; audio is not supported")
