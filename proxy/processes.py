"""Makes the command of a process that runs a module of ours."""

import sys
from pathlib import Path


def command_of(module: str) -> tuple[str, ...]:
    """Return the command that runs a module where this process has its own from.

    Python would look into the current folder first, where a user's own `proxy` may lie.
    """
    from_here = sys.path[0] in {"", str(Path.cwd())}
    return (sys.executable, *(() if from_here else ("-P",)), "-m", module)
