"""Runs `motab` and counts the instructions of Python's interpreter, on any machine the same.

On SIGUSR2 the process writes the count so far to the file that `COUNT_FILE` names.
"""

import os
import runpy
import signal
import sys
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

COUNT_FILE = "MOTAB_COUNT_FILE"
_instructions = count()


def _begun(frame: FrameType, _event: str, _value: Any) -> Any:  # noqa: ANN401 - as `sys.settrace`
    frame.f_trace_opcodes = True
    frame.f_trace_lines = False
    return _counted


def _counted(_frame: FrameType, event: str, _value: Any) -> Any:  # noqa: ANN401
    if event == "opcode":
        next(_instructions)
    return _counted


def _report(_signal: int, _frame: FrameType | None) -> None:
    path = Path(os.environ[COUNT_FILE])
    draft = path.with_suffix(".draft")
    draft.write_text(str(next(_instructions)), "utf-8")
    draft.replace(path)


if __name__ == "__main__":
    signal.signal(signal.SIGUSR2, _report)
    sys.settrace(_begun)
    runpy.run_module("motab", run_name="__main__", alter_sys=True)
