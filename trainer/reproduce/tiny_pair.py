"""Makes the tiny pair: tokenizers, configurations and lessons, and trains both models on them.

Every number is one token in both, but the teacher's tokenizer has an end of a step as one token,
where the student's has two, and its words are longer.
"""

import random
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson
from rich.console import Console
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from synth_client.files.atomic import AtomicFile, output_errors, write_whole
from trainer.compare.processes import child_process, tail_of
from trainer.environments import FOREIGN, trainer_python
from trainer.errors import TrainingFailed
from trainer.reproduce.task import DELIMITER, DOUBT, Exercise, Task

END: Final = "<|end|>"
BLANK: Final = "blank"
LESSONS: Final = "lessons.jsonl"
MODEL: Final = "model"
_PAD: Final = "<|pad|>"
_SCRIPT: Final = FOREIGN / "pretrain.py"
_WEIGHTS: Final = "model.safetensors"
_TOKENIZER: Final = ("tokenizer.json", "tokenizer_config.json")
_POSITIONS: Final = 512
BATCH: Final = 32


@dataclass(frozen=True, slots=True)
class Round:
    """Training of `num_steps`, on its own lessons, down to a twentieth of the learning rate.

    `redone` is the share of the lessons that begin with a slip, of which only what corrects it is
    learned. Of the others, `slips` go wrong on their way, and notice it. `hard` is the share of
    hard problems, if it is not the design's.
    """

    num_steps: int
    learning_rate: float
    redone: float = 0.0
    slips: float = 0.1
    hard: float | None = None

    @property
    def min_learning_rate(self) -> float:
        """The learning rate at the end."""
        return self.learning_rate / 20


@dataclass(frozen=True, slots=True)
class Schooling:
    """A model's layers and rounds for one task. The first round starts from random weights."""

    num_layers: int
    rounds: tuple[Round, ...]


@dataclass(frozen=True, slots=True)
class Design:
    """A model to make: a Llama of `width`, in heads of 32, with a schooling for every task.

    `hard` is the share of hard problems in its lessons. `end` is cut from what stands before it in
    a text; `vocabulary` is the number of tokens at most. The template's marks stand before a
    question and before its answer.
    """

    name: str
    width: int
    hard: float
    end: str
    vocabulary: int
    marks: tuple[str, str]
    by_task: Mapping[str, Schooling]


TEACHER: Final = Design(
    name="teacher",
    width=64,
    hard=0.85,
    end=r"\.?\n+",
    vocabulary=420,
    marks=("<|user|>", "<|assistant|>"),
    by_task={
        "sets": Schooling(4, (Round(5000, 2.5e-3, redone=0.25),)),
        "sums": Schooling(4, (Round(2500, 2.5e-3, redone=0.25),)),
    },
)
STUDENT: Final = Design(
    name="student",
    width=64,
    hard=0.05,
    end=r"\n+",
    vocabulary=400,
    marks=("<|question|>", "<|answer|>"),
    by_task={
        "sets": Schooling(
            2, (Round(3000, 2.5e-3, slips=0.012), Round(300, 1.2e-3, slips=0.012, hard=0.02))
        ),
        "sums": Schooling(3, (Round(2500, 2.5e-3),)),
    },
)


@dataclass(frozen=True, slots=True)
class Pair:
    """The folders of both models."""

    student: Path
    teacher: Path


def make_pair(task: Task, folder: Path, console: Console) -> Pair:
    """Train both, or continue their training; each needs a core.

    Raises `TrainerMissing` without an environment, and `TrainingFailed`.
    """
    python = trainer_python(None)
    designs = (TEACHER, STUDENT)
    console.print(f"training a pair for {task.name}; logs in {folder}", soft_wrap=True)
    with ThreadPoolExecutor(len(designs)) as pool:
        teacher, student = pool.map(
            lambda design: _made(task, design, folder / design.name, python), designs
        )
    return Pair(student=student, teacher=teacher)


def _made(task: Task, design: Design, folder: Path, python: Path) -> Path:
    blank = folder / BLANK
    write_blank(task, design, blank)
    model: Path | None = None
    for index, lessons in enumerate(design.by_task[task.name].rounds):
        place = folder / f"round-{index + 1}"
        if not (place / MODEL / _WEIGHTS).exists():
            write_lessons(task, design, index, place / LESSONS)
            _train(design, lessons, place, model, python)
        model = place / MODEL
    if model is None:
        raise ValueError(f"the {design.name} has no round of training")
    for name in _TOKENIZER:
        shutil.copy(blank / name, model / name)
    return model


def _train(design: Design, lessons: Round, place: Path, begin: Path | None, python: Path) -> None:
    settings = {
        "blank": str((place.parent / BLANK).resolve()),
        "begin": None if begin is None else str(begin.resolve()),
        "lessons": str((place / LESSONS).resolve()),
        "output": str(place.resolve()),
        "marks": design.marks,
        "end": END,
        "num_steps": lessons.num_steps,
        "batch_size": BATCH,
        "learning_rate": lessons.learning_rate,
        "min_learning_rate": lessons.min_learning_rate,
    }
    path, log = place / "settings.json", place / "train.log"
    write_whole(path, orjson.dumps(settings, option=orjson.OPT_INDENT_2))
    command = [str(python), str(_SCRIPT), str(path)]
    with child_process(command, {"OMP_NUM_THREADS": "1"}, log) as process:
        code = process.wait()
    if code:
        tail = tail_of(log)
        raise TrainingFailed(
            f"the {design.name} was not trained: {tail}", exit_code=code, tail=tail
        )


def write_blank(task: Task, design: Design, folder: Path) -> None:
    """Write a folder with everything of a model but its weights."""
    tokenizer = _tokenizer(task, design)
    files = {
        "config.json": _config(task, design, tokenizer),
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


def write_lessons(task: Task, design: Design, index: int, path: Path) -> None:
    """Write worked problems for every step of a round."""
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with AtomicFile(path) as lessons:
            lessons.file.writelines(_lessons(task, design, index))
            lessons.publish()


def _lessons(task: Task, design: Design, index: int) -> Iterator[bytes]:
    lessons = design.by_task[task.name].rounds[index]
    name = f"{task.name}-{design.name}-{index}"
    rng = random.Random(name)  # noqa: S311 - reproducible, not secret
    num = lessons.num_steps * BATCH
    hard = design.hard if lessons.hard is None else lessons.hard
    for problem in _drawn(task, f"{name}-lessons", num, hard):
        if rng.random() < lessons.redone:
            begun, solution = task.redone(problem, rng)
        else:
            begun, solution = "", task.worked(problem, rng, lessons.slips)
        lesson = {"question": problem.text, "begun": begun, "solution": solution}
        yield orjson.dumps(lesson, option=orjson.OPT_APPEND_NEWLINE)


def _drawn(task: Task, name: str, num: int, hard: float) -> Iterator[Exercise]:
    """Yield problems of which some are the same: there are not enough different easy ones."""
    rng = random.Random(name)  # noqa: S311 - reproducible, not secret
    for _ in range(num):
        yield task.problem(name, rng, "hard" if rng.random() < hard else "easy")


def _tokenizer(task: Task, design: Design) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d{1,2}"), "isolated"),
            # Otherwise the cut after newlines would depend on what follows, a letter or a digit.
            pre_tokenizers.Split(Regex(design.end), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=design.vocabulary,
        special_tokens=[_PAD, END, *design.marks],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(task, design), trainer)
    return tokenizer


def _texts(task: Task, design: Design) -> Iterator[str]:
    name = f"{task.name}-{design.name}-tokens"
    rng = random.Random(name)  # noqa: S311 - reproducible, not secret
    slips = design.by_task[task.name].rounds[0].slips
    for problem in _drawn(task, name, 3000, 0.5):
        yield problem.text
        yield task.worked(problem, rng, slips)
    yield "".join(f"{number}{DOUBT}{DELIMITER}" for number in range(100) for _ in range(50))


def _template(design: Design) -> str:
    question, answer = design.marks
    return (
        "{% for message in messages %}"
        f"{{% if message['role'] == 'assistant' %}}{answer}{{{{ message['content'] }}}}{END}"
        f"{{% else %}}{question}{{{{ message['content'] }}}}{{% endif %}}"
        "{% endfor %}"
        f"{{% if add_generation_prompt %}}{answer}{{% endif %}}"
    )


def _config(task: Task, design: Design, tokenizer: Tokenizer) -> dict[str, Any]:
    heads = design.width // 32
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": design.width,
        "intermediate_size": design.width * 8 // 3 // 32 * 32,
        "num_hidden_layers": design.by_task[task.name].num_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": _POSITIONS,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer.token_to_id(END),
        "pad_token_id": tokenizer.token_to_id(_PAD),
        "dtype": "float32",
    }
