"""Makes files and folders survive a power cut."""

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Make a file's content, or a folder's new and renamed entries, survive a power cut.

    Raises OSError.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
