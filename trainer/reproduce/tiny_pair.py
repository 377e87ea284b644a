"""Makes the tiny pair: tokenizers and configurations, and the recipes that train both models.

The two read digits differently, so hardly a token of a solution is the same in both.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson
from rich.console import Console
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from synth_client.files.atomic import AtomicFile, output_errors, write_whole
from synth_client.training_data.export import DATASET_INFO, DATASET_NAME
from trainer.reproduce.task import problems, worked
from trainer.training.recipe import CpuHardware, ExportData, Recipe, Training
from trainer.training.train import train

END: Final = "<|end|>"
_PAD: Final = "<|pad|>"
_LESSONS: Final = "lessons.jsonl"
_POSITIONS: Final = 512
_NUM_TERMS: Final = (3, 4, 5, 6)


@dataclass(frozen=True, slots=True)
class Round:
    """Training of `num_steps`, on its own lessons, from one learning rate to another."""

    num_steps: int
    learning_rate: float
    min_learning_rate: float


@dataclass(frozen=True, slots=True)
class Design:
    """A model to make: a Llama of `num_layers` layers of `width`, in heads of 32.

    `digits` is the largest number of digits in a token. The template's marks stand before a
    question and before its answer. The first round starts from random weights.
    """

    name: str
    num_layers: int
    width: int
    digits: int
    vocabulary: int
    marks: tuple[str, str]
    rounds: tuple[Round, ...]


TEACHER: Final = Design(
    name="teacher",
    num_layers=4,
    width=128,
    digits=2,
    vocabulary=400,
    marks=("<|user|>", "<|assistant|>"),
    rounds=(Round(3000, 2e-3, 1e-4), Round(1500, 1e-3, 2e-5)),
)
STUDENT: Final = Design(
    name="student",
    num_layers=2,
    width=64,
    digits=1,
    vocabulary=300,
    marks=("<|question|>", "<|answer|>"),
    rounds=(Round(2400, 2e-3, 1e-4),),
)
_BATCH: Final = 32


@dataclass(frozen=True, slots=True)
class Pair:
    """The folders of both models."""

    student: Path
    teacher: Path


def make_pair(folder: Path, console: Console) -> Pair:
    """Train both, or continue their training. Raises what `train` raises."""
    made = {
        design.name: _made(design, folder / design.name, console) for design in (TEACHER, STUDENT)
    }
    return Pair(student=made["student"], teacher=made["teacher"])


def _made(design: Design, folder: Path, console: Console) -> Path:
    model = folder / "blank"
    write_blank(design, model)
    for index, lessons in enumerate(design.rounds):
        console.rule(f"the {design.name} of the pair, round {index + 1} of {len(design.rounds)}")
        place = folder / f"round-{index + 1}"
        write_lessons(design, index, place / "lessons")
        recipe = pretraining(lessons, model, place, from_scratch=index == 0)
        model = train(recipe, python=None, resume=True, console=console).model
    return model


def write_blank(design: Design, folder: Path) -> None:
    """Write a folder with everything of a model but its weights."""
    tokenizer = _tokenizer(design)
    files = {
        "config.json": _config(design, tokenizer),
        "generation_config.json": {
            "eos_token_id": tokenizer.token_to_id(END),
            "pad_token_id": tokenizer.token_to_id(_PAD),
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": END,
            "pad_token": _PAD,
            "clean_up_tokenization_spaces": False,
            "model_max_length": _POSITIONS,
            "chat_template": _template(design),
        },
    }
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "tokenizer.json", tokenizer.to_str(pretty=True).encode())
    for name, content in files.items():
        write_whole(folder / name, orjson.dumps(content, option=orjson.OPT_INDENT_2))


def write_lessons(design: Design, index: int, folder: Path) -> None:
    """Write worked problems for every step of a round, as LLaMA-Factory reads them."""
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with AtomicFile(folder / _LESSONS) as lessons:
            lessons.file.writelines(_lessons(design, index))
            lessons.publish()
    columns = {"prompt": "question", "response": "solution"}
    info = {DATASET_NAME: {"file_name": _LESSONS, "columns": columns}}
    write_whole(folder / DATASET_INFO, orjson.dumps(info, option=orjson.OPT_INDENT_2))


def pretraining(lessons: Round, model: Path, folder: Path, *, from_scratch: bool) -> Recipe:
    """Return the recipe of a round, which uses every lesson in the folder once."""
    return Recipe(
        model=str(model),
        from_scratch=from_scratch,
        data=ExportData(kind="export", path=folder / "lessons"),
        training=Training(
            epochs=1,
            batch_size=_BATCH,
            max_tokens=_POSITIONS,
            learning_rate=lessons.learning_rate,
            min_learning_rate=lessons.min_learning_rate,
            save_every=300,
        ),
        hardware=CpuHardware(kind="cpu", per_device=_BATCH),
        output=folder / "training",
    )


def _lessons(design: Design, index: int) -> Iterator[bytes]:
    name = f"{design.name}-{index}" if index else design.name
    rng = random.Random(name)  # noqa: S311 - reproducible, not secret
    num = design.rounds[index].num_steps * _BATCH
    for problem in problems(f"{name}-lessons", num, _NUM_TERMS):
        lesson = {"question": problem.text, "solution": worked(problem, rng)}
        yield orjson.dumps(lesson, option=orjson.OPT_APPEND_NEWLINE)


def _tokenizer(design: Design) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    digits = Regex(r"\d" if design.digits == 1 else rf"\d{{1,{design.digits}}}")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(digits, "isolated"),
            # Otherwise the cut after newlines would depend on what follows, a letter or a digit.
            pre_tokenizers.Split(Regex(r"\n+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=design.vocabulary,
        special_tokens=[_PAD, END, *design.marks],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(design), trainer)
    return tokenizer


def _texts(design: Design) -> Iterator[str]:
    rng = random.Random(design.name)  # noqa: S311 - reproducible, not secret
    for problem in problems(f"{design.name}-tokens", 3000, _NUM_TERMS):
        yield problem.text
        yield worked(problem, rng)
        yield "However,\n\n"


def _template(design: Design) -> str:
    question, answer = design.marks
    return (
        "{% for message in messages %}"
        f"{{% if message['role'] == 'assistant' %}}{answer}{{{{ message['content'] }}}}{END}"
        f"{{% else %}}{question}{{{{ message['content'] }}}}{{% endif %}}"
        "{% endfor %}"
        f"{{% if add_generation_prompt %}}{answer}{{% endif %}}"
    )


def _config(design: Design, tokenizer: Tokenizer) -> dict[str, Any]:
    heads = design.width // 32
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": design.width,
        "intermediate_size": design.width * 8 // 3 // 32 * 32,
        "num_hidden_layers": design.num_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": _POSITIONS,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer.token_to_id(END),
        "pad_token_id": tokenizer.token_to_id(_PAD),
        "dtype": "float32",
    }
