"""Stands in for torchaudio, which LLaMA-Factory imports even where nothing is heard.

PyPI's torchaudio does not load beside the CPU build of torch. With the folder above on PYTHONPATH
this module is found in its place; what would use it fails, and says so.
"""

from typing import NoReturn


def __getattr__(name: str) -> NoReturn:
    raise AttributeError(f"torchaudio.{name}: torchaudio is not installed; audio is not supported")
