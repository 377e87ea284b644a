"""The largest difference between two models' parameters: `compare_students.py FOLDER FOLDER`.

Run in the trainer's environment.
"""

import sys
from pathlib import Path

from safetensors.torch import load_file


def main() -> None:
    one, other = (load_file(Path(folder) / "model.safetensors") for folder in sys.argv[1:])
    assert one.keys() == other.keys()
    print(max(float((one[name] - other[name]).abs().max()) for name in one))  # noqa: T201


if __name__ == "__main__":
    main()
