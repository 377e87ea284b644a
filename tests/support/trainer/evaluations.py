"""Gives what `motab eval` is run with and answered."""

import os
from typing import Any

ENV = {k: v for k, v in os.environ.items() if k not in {"FORCE_COLOR", "TERM"}} | {"COLUMNS": "400"}


def completion(text: str, finish_reason: str = "stop") -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {
        "model": "served-name",
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8},
    }
