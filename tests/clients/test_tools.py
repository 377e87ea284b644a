"""Stock tools ask in their own ways, and the table of docs/your-tool.md says what they got."""

import os
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from synth_client.files.record_file import read_records
from tests.clients.conftest import Served
from tests.clients.table import Found, documented_versions, row_of, rows
from tests.support.paths import ROOT
from tests.support.patience import PATIENCE_S
from tests.support.proxy.live import API_KEY


@dataclass(frozen=True)
class Tool:
    """A tool by its script, and the environment that has it."""

    script: str
    environment: str = "clients"

    @property
    def python(self) -> Path:
        return ROOT / f".venv-{self.environment}" / "bin" / "python"

    @property
    def tiktoken_tables(self) -> Path:
        """The tables inside litellm, which others would fetch from a server of OpenAI."""
        inside = "lib/python3*/site-packages/litellm/litellm_core_utils/tokenizers"
        (folder,) = self.python.parents[1].glob(inside)
        return folder


# The slow tools first, so that no process waits long for another.
TOOLS = {
    "bespokelabs-curator": Tool("use_curator", "curator"),
    "lm-eval": Tool("use_lm_eval"),
    "guidellm": Tool("use_guidellm"),
    "distilabel": Tool("use_distilabel"),
    "data-designer": Tool("use_data_designer"),
    "inspect-ai": Tool("use_inspect"),
    "litellm": Tool("use_litellm"),
    "openai": Tool("use_openai"),
    "langchain-openai": Tool("use_langchain"),
    "pydantic-ai-slim": Tool("use_pydantic_ai"),
}
# Nothing may be fetched from a hub, and nothing reported to anybody.
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "NEMO_TELEMETRY_ENABLED": "false",
    "TELEMETRY_ENABLED": "false",
    "LANGSMITH_TRACING": "false",
}


def used(tool: Tool, base_url: str, home: Path) -> Found:
    """Run the script of the tool in a folder of its own, and return what it got."""
    home.mkdir()
    done = subprocess.run(
        [tool.python, "-m", f"tests.clients.{tool.script}", base_url, API_KEY],
        cwd=home,
        env={
            **os.environ,
            **QUIET,
            "HOME": str(home),
            "OPENAI_API_KEY": API_KEY,
            "PYTHONPATH": str(ROOT),
            "TIKTOKEN_CACHE_DIR": str(tool.tiktoken_tables),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return Found.read(home / "found.json")


@pytest.mark.parametrize("package", TOOLS)
def test_the_tool_gets_what_the_table_says(package: str, served: Served, tmp_path: Path) -> None:
    found = used(TOOLS[package], served.base_url, tmp_path / "home")
    for way, answer in found.answers.items():
        assert answer["text"].strip(), way
        assert ("Wait," in answer["text"]) == way.startswith("`motab` params"), way
    # The tool may have stripped the texts, or dropped their traces: the records have both.
    recorded = Counter(record.output.strip() for record in read_records(served.records))
    texts = [a["text"].strip() for way, a in found.answers.items() if "`student/`" not in way]
    assert not Counter(texts) - recorded
    assert row_of(package, found) == rows().get(package)


def test_the_table_has_each_tool() -> None:
    assert documented_versions().keys() == TOOLS.keys()
