"""Prints what EvalScope itself reports: `evaluate_alone.py URL WORK {"name": "folder", ...}`.

Run in EvalScope's environment. Prints {"name": {"metric": score}} as its last line.
"""

import json
import sys
from importlib.metadata import distribution

import nltk
from evalscope.config import TaskConfig
from evalscope.run import run_task


def main() -> None:
    url, work, folders = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    data = distribution("llama-index-core").locate_file("llama_index/core/_static/nltk_cache")
    nltk.data.path.append(str(data))
    config = TaskConfig(
        model="student",
        eval_type="openai_api",
        api_url=url,
        api_key="none",
        datasets=list(folders),
        dataset_args={name: {"dataset_id": folder} for name, folder in folders.items()},
        generation_config={"max_tokens": 50, "temperature": 0.0},
        eval_batch_size=4,
        work_dir=work,
    )
    reports = run_task(config)
    found = {
        name: {metric.name: metric.score for metric in report.metrics}
        for name, report in reports.items()
    }
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
