"""Take the tokenizer out of a GGUF file: `make_tokenizer.py GGUF_FILE FOLDER`.

Run in the trainer's environment.
"""

import sys
from pathlib import Path

from transformers import AutoTokenizer


def main() -> None:
    gguf, folder = map(Path, sys.argv[1:])
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


if __name__ == "__main__":
    main()
