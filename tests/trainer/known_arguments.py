"""Lists the arguments of `train_on_policy.py` that TRL does not know: `known_arguments.py FILE...`.

Run in the environment with TRL. Prints an object with a list for every file, as JSON.
"""

import dataclasses
import json
import sys
from pathlib import Path

import yaml
from trl.experimental.iw_opd import IWOPDConfig


def main() -> None:
    known = {field.name for field in dataclasses.fields(IWOPDConfig)}
    found = {}
    for path in sys.argv[1:]:
        settings = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        found[Path(path).stem] = sorted(settings["arguments"].keys() - known)
    sys.stdout.write(f"\n{json.dumps(found)}")


if __name__ == "__main__":
    main()
