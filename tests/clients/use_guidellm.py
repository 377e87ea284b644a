"""Benchmarks the proxy with guidellm for a few requests."""

import json
import subprocess
import sys
from pathlib import Path

from tests.clients.ways import API_KEY, BASE_URL, QUESTIONS, WAIT, Answer, report

GUIDELLM = Path(sys.executable).with_name("guidellm")


def measured(**more: object) -> Answer:
    backend = {"kind": "openai_http", "target": BASE_URL, "api_key": API_KEY, **more}
    subprocess.run(
        [
            *(GUIDELLM, "run", "--disable-console", "--backend", json.dumps(backend)),
            *("--profile", "kind=synchronous"),
            *("--constraint", f"kind=max_requests,count={len(QUESTIONS)}"),
            *("--data", "kind=text_file,path=questions.txt"),
            *("--output", "kind=json,path=measured.json"),
        ],
        check=True,
    )
    (benchmark,) = json.loads(Path("measured.json").read_text(encoding="utf-8"))["benchmarks"]
    requests = benchmark["requests"]
    assert not requests["errored"], requests["errored"]
    assert len(requests["successful"]) == len(QUESTIONS)
    assert all(request["output_tokens"] for request in requests["successful"])
    return Answer(requests["successful"][0]["output"])


def main() -> None:
    Path("questions.txt").write_text("\n".join(QUESTIONS), encoding="utf-8")
    report(
        "guidellm",
        {
            "streamed": measured(),
            "`motab` params": measured(extras={"body": {"motab": WAIT}}),
            "whole": measured(stream=False),
        },
    )


if __name__ == "__main__":
    main()
