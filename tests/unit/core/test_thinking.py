"""The mapping between ways of thinking, as pure text; and how a template shows which one it is.

The templates in tests/golden/templates are the models' own. Those here were written for these tests
after what others do: Qwen3's two 2507 variants, DeepSeek's, Llama 3's.
"""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.backends.base import Call, Message, Question, Segment
from proxy.backends.tokens.chat_template import ChatTemplate
from proxy.backends.tokens.detect_thinking import detect_reasoning
from proxy.core.segmenter import split_steps
from proxy.core.thinking import Bridge, MappedSteps, Reasoning, StepPart
from proxy.errors import UpstreamRefused
from tests.support.paths import GOLDEN

NONE, THINK, OPENED = Reasoning(), Reasoning("think"), Reasoning("think", opened=True)
HARMONY = Reasoning("harmony")
ANALYSIS = "<|channel|>analysis<|message|>"
FINAL = "<|channel|>final<|message|>"
TO_FINAL = f"<|end|><|start|>assistant{FINAL}"

THOUGHTS = "<think>\nTwo and two.\n\nIs four.\n</think>\n\nIt is 4."
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + BODY + '<|im_end|>\\n' }}"
    "{% endfor %}{{ '<|im_start|>assistant\\n' }}"
)
FORGETS = "m.content.split('</think>')[-1].lstrip('\\n')"
TEMPLATES = {
    "qwen3-hybrid": (CHATML.replace("BODY", FORGETS), THINK),
    "qwen3-instruct-2507": (CHATML.replace("BODY", "m.content"), NONE),
    "qwen3-thinking-2507": (CHATML.replace("BODY", FORGETS) + "{{ '<think>\\n' }}", OPENED),
    "deepseek-r1": (
        (
            "{{ bos_token }}{% for m in messages %}{{ '<U>' if m.role == 'user' else '<A>' }}"
            "{{ m.content.split('</think>')[-1] }}{% endfor %}{{ '<A><think>\\n' }}"
        ),
        OPENED,
    ),
    "deepseek-v3.1": (
        "{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}<A></think>",
        NONE,
    ),
    "thinking-switched-off": (
        CHATML.replace("BODY", FORGETS) + "{{ '<think>\\n\\n</think>\\n\\n' }}",
        NONE,
    ),
    "llama-3": (
        (
            "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>"
            "\n\n{{ m.content | trim }}<|eot_id|>{% endfor %}"
            "<|start_header_id|>assistant<|end_header_id|>\n\n"
        ),
        NONE,
    ),
    "gpt-oss": (
        (
            "<|start|>system<|message|>Reasoning: medium<|end|>{% for m in messages %}"
            "{% if m.role == 'user' %}<|start|>user<|message|>{{ m.content }}<|end|>{% else %}"
            "<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|end|>"
            "{% endif %}{% endfor %}<|start|>assistant"
        ),
        HARMONY,
    ),
    "users-only": (
        (
            "{% for m in messages %}{% if m.role != 'user' %}{{ raise_exception('no') }}{% endif %}"
            "{{ m.content }}{% endfor %}"
        ),
        NONE,
    ),
}


REAL = {"Qwen-Qwen3-0.6B": THINK, "openai-gpt-oss-120b": HARMONY}
REAL_TEMPLATES = GOLDEN / "templates"


def real_template(name: str) -> str:
    return (REAL_TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


class TemplateReader:
    """A template alone; one character is one token."""

    def __init__(self, template: str) -> None:
        self._template = ChatTemplate(template)

    async def render(self, question: Question, call: Call) -> Segment:
        return await self.markup(self._template.render(question.messages), call)

    async def prompt_text(self, rendered: Segment, call: Call) -> str:
        del call
        return rendered.text

    async def markup(self, text: str, call: Call) -> Segment:
        del call
        return Segment(text, tuple(map(ord, text)))

    async def encode(self, texts: object, call: Call) -> list[Segment]:
        raise NotImplementedError

    async def encode_running(self, texts: object, call: Call) -> list[list[Segment]]:
        raise NotImplementedError


class Untemplated(TemplateReader):
    async def render(self, question: Question, call: Call) -> Segment:
        raise UpstreamRefused("up", "the model has no chat template")


def text_of(reading: MappedSteps) -> str:
    """The text after the model's prompt."""
    return reading.prefix + "".join(part.text for parts in reading.steps for part in parts)


def read(visible: Reasoning, own: Reasoning, text: str) -> str:
    return text_of(Bridge(visible, own).map_steps(split_steps(text, ".\n\n")))


def written(own: Reasoning, visible: Reasoning, *pieces: str, after: str = "") -> str:
    """The visible text of what the model writes after those visible steps."""
    bridge = Bridge(visible, own)
    translator = bridge.translator(bridge.map_steps(split_steps(after, ".\n\n")).state)
    return "".join((*translator.feed(pieces), *translator.end()))


@pytest.mark.parametrize("name", REAL)
async def test_a_model_s_own_template_shows_how_it_thinks(name: str) -> None:
    found = await detect_reasoning(TemplateReader(real_template(name)), Call("t"))
    assert found == REAL[name]


async def test_qwen3_s_own_empty_thought_is_the_one_that_a_plain_student_is_read_after() -> None:
    template = real_template("Qwen-Qwen3-0.6B").replace(
        "enable_thinking is defined and enable_thinking is false", "true"
    )
    question = Question((Message("user", "1+1?"),))
    switched_off = await TemplateReader(template).render(question, Call("t"))
    rendered = await TemplateReader(real_template("Qwen-Qwen3-0.6B")).render(question, Call("t"))
    reading = Bridge(NONE, THINK).map_steps(["It is 2."])
    assert switched_off.text == rendered.text + reading.prefix


async def test_gpt_oss_reads_thoughts_as_its_own_template_writes_them() -> None:
    history = (
        Message("user", "2+2?"),
        Message("assistant", "It is 4."),
        Message("user", "Sure?"),
    )
    reader = TemplateReader(real_template("openai-gpt-oss-120b"))
    rendered = await reader.render(Question(history), Call("t"))
    assert f"<|start|>assistant{read(NONE, HARMONY, 'It is 4.')}<|end|>" in rendered.text
    own = f"{ANALYSIS}Two and two.\n\nIs four.{TO_FINAL}It is 4."
    assert read(THINK, HARMONY, THOUGHTS) == own


@pytest.mark.parametrize("name", TEMPLATES)
async def test_a_template_shows_how_its_model_thinks(name: str) -> None:
    template, expected = TEMPLATES[name]
    assert await detect_reasoning(TemplateReader(template), Call("t")) == expected


async def test_a_model_without_a_template_has_no_format() -> None:
    assert await detect_reasoning(Untemplated("x"), Call("t")) == NONE


@pytest.mark.parametrize(
    ("visible", "own", "expected"),
    [
        (THINK, OPENED, THOUGHTS.removeprefix("<think>\n")),
        (THINK, NONE, "Two and two.\n\nIs four.\n\nIt is 4."),
        (THINK, HARMONY, f"{ANALYSIS}Two and two.\n\nIs four.{TO_FINAL}It is 4."),
    ],
)
def test_a_thought_that_the_student_opens_stands_where_the_teacher_s_would(
    visible: Reasoning, own: Reasoning, expected: str
) -> None:
    assert read(visible, own, THOUGHTS) == expected


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        (THINK, THOUGHTS),
        (NONE, "Two and two.\n\nIs four.\n\nIt is 4."),
        (HARMONY, f"{ANALYSIS}Two and two.\n\nIs four.{TO_FINAL}It is 4."),
    ],
)
def test_a_thought_that_the_student_s_prompt_opened_does_too(own: Reasoning, expected: str) -> None:
    assert read(OPENED, own, THOUGHTS.removeprefix("<think>\n")) == expected


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        (THINK, "<think>\n\n</think>\n\nIt is 4."),
        (OPENED, "\n</think>\n\nIt is 4."),
        (HARMONY, f"{FINAL}It is 4."),
    ],
)
@pytest.mark.parametrize("visible", [NONE, THINK])
def test_an_answer_without_a_thought_follows_an_empty_one(
    visible: Reasoning, own: Reasoning, expected: str
) -> None:
    if visible != own:
        assert read(visible, own, "It is 4.") == expected


@given(st.text(), st.sampled_from([NONE, THINK, OPENED]))
def test_between_equal_formats_nothing_is_mapped(text: str, format_: Reasoning) -> None:
    steps = split_steps(text, ".\n\n")
    reading = Bridge(format_, format_).map_steps(steps)
    assert reading.prefix == ""
    assert reading.steps == tuple((StepPart(step),) for step in steps)
    assert written(format_, format_, text) == text


def test_only_the_first_closing_tag_counts() -> None:
    text = "<think>\na\n</think>\n\nb </think> c <think>"
    assert read(THINK, HARMONY, text) == f"{ANALYSIS}a{TO_FINAL}b </think> c <think>"


def test_a_closing_tag_in_a_later_step_is_text() -> None:
    reading = Bridge(OPENED, HARMONY).map_steps(["a</think>b.\n\n", "c </think> d"])
    assert text_of(reading) == f"{ANALYSIS}a{TO_FINAL}b.\n\nc </think> d"


def test_a_tag_that_is_split_over_two_steps_is_text() -> None:
    reading = Bridge(OPENED, HARMONY).map_steps(["thought</thi", "nk>answer"])
    assert text_of(reading) == f"{ANALYSIS}thought</think>answer"
    assert reading.state == "thinking"


def test_a_step_that_would_become_empty_keeps_its_text() -> None:
    bridge = Bridge(THINK, NONE)
    assert bridge.map_steps(["<think>\n", "a\n", "</think>\n", "b"]).steps == (
        (StepPart("<think>\n"),),
        (StepPart("a\n"),),
        (StepPart("</think>\n"),),
        (StepPart("b"),),
    )


def test_markup_is_told_from_the_student_s_words() -> None:
    reading = Bridge(OPENED, HARMONY).map_steps([f"a {FINAL}\n</think>\n\nb"])
    assert reading.prefix == ANALYSIS
    assert reading.steps == (
        (StepPart(f"a {FINAL}"), StepPart(TO_FINAL, markup=True), StepPart("b")),
    )


@given(st.lists(st.text(), max_size=3), st.sampled_from([NONE, THINK, OPENED, HARMONY]))
def test_how_a_step_is_mapped_depends_on_none_after_it(texts: list[str], own: Reasoning) -> None:
    steps = [step for step in ("<think>\n", *texts, "\n</think>\n\n", "b") if step]
    for visible in (NONE, THINK, OPENED):
        bridge = Bridge(visible, own)
        whole = bridge.map_steps(steps)
        for count in range(1, len(steps)):
            assert bridge.map_steps(steps[:count]).steps == whole.steps[:count]
            assert bridge.map_steps(steps, "", count) == replace(whole, steps=whole.steps[count:])


WORDS = st.text(st.characters(exclude_characters="<>\n"), min_size=1).filter(str.strip)


@given(WORDS, WORDS, st.sampled_from([NONE, THINK, OPENED]), st.sampled_from([NONE, HARMONY]))
def test_the_words_come_through_every_mapping(
    thought: str, answer: str, visible: Reasoning, own: Reasoning
) -> None:
    opening = "<think>\n" if visible == THINK else ""
    closing = "\n</think>\n\n" if visible.kind == "think" else "\n\n"
    mapped = read(visible, own, opening + thought + closing + answer)
    for tag in (ANALYSIS, TO_FINAL, FINAL):
        mapped = mapped.replace(tag, "\n\n")
    assert mapped.strip("\n").replace("\n\n", "|") == f"{thought}|{answer}"


def test_a_harmony_model_s_text_becomes_thoughts_in_tags_and_an_answer() -> None:
    raw = f"{ANALYSIS}Two and two.{TO_FINAL}It is 4."
    assert written(HARMONY, THINK, raw) == "<think>\nTwo and two.\n</think>\n\nIt is 4."
    assert written(HARMONY, THINK, f"{FINAL}It is 4.") == "It is 4."


@given(WORDS, WORDS)
def test_what_a_harmony_model_wrote_it_reads_again_as_it_wrote_it(
    thought: str, answer: str
) -> None:
    raw = f"{ANALYSIS}{thought}{TO_FINAL}{answer}"
    assert read(THINK, HARMONY, written(HARMONY, THINK, raw)) == raw


def test_messages_on_one_channel_are_paragraphs() -> None:
    raw = f"{ANALYSIS}a<|end|><|start|>assistant<|channel|>commentary<|message|>b{TO_FINAL}c"
    assert written(HARMONY, THINK, raw) == "<think>\na\n\nb\n</think>\n\nc"


@pytest.mark.parametrize(
    ("visible", "after", "raw", "expected"),
    [
        (NONE, "So.\n\n", "it is 4.", "it is 4."),
        (NONE, "", "It is 4.", "It is 4."),
        (THINK, "<think>\nSo.\n\n", f"b{TO_FINAL}c", "b\n</think>\n\nc"),
        (THINK, "<think>\nSo.\n</think>\n\n4.\n\n", "c", "c"),
        (OPENED, "", f"b{TO_FINAL}c", "b\n</think>\n\nc"),
    ],
)
def test_a_harmony_teacher_goes_on_where_the_student_stood(
    visible: Reasoning, after: str, raw: str, expected: str
) -> None:
    assert written(HARMONY, visible, raw, after=after) == expected


def test_a_thought_that_the_teacher_s_prompt_opens_is_opened_in_the_text() -> None:
    assert written(OPENED, THINK, "a\n</think>\n\nb") == "<think>\na\n</think>\n\nb"


def test_a_text_that_only_begins_like_a_header_is_not_lost() -> None:
    assert written(HARMONY, THINK, "It", " is 4.") == "It is 4."
    assert written(HARMONY, NONE, "a <", "|en") == "a <|en"
    assert written(HARMONY, THINK, "<|channel|>", "anal") == ""


def test_what_precedes_unread_says_whether_a_thought_is_open() -> None:
    before = "<think>\nWrong.\n\n"
    for own, prefix in ((THINK, "<think>\n"), (OPENED, ""), (HARMONY, ANALYSIS)):
        assert Bridge(THINK, own).map_steps((), before) == MappedSteps(prefix, (), "thinking")
    assert Bridge(THINK, HARMONY).map_steps((), "Wrong.") == MappedSteps(FINAL, (), "answering")
    assert Bridge(THINK, HARMONY).map_steps(()) == MappedSteps("", (), "free")


TOKENS = ["<|channel|>", "analysis", "final", "<|message|>", "<|end|>", "<|start|>", "assistant"]


@given(st.lists(st.sampled_from([*TOKENS, "a", "\n", "<", "|", "."])), st.data())
def test_the_translation_does_not_depend_on_how_the_text_comes(
    tokens: list[str], data: st.DataObject
) -> None:
    text = "".join(tokens)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)))))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert written(HARMONY, THINK, *pieces) == written(HARMONY, THINK, text)


@given(st.lists(st.sampled_from([*TOKENS, "a", "\n"])))
def test_a_translation_has_a_piece_for_every_token(tokens: list[str]) -> None:
    translator = Bridge(THINK, HARMONY).translator("free")
    num_pieces = 0
    for index, token in enumerate(tokens):
        num_pieces += len(translator.feed((token,)))
        assert index <= num_pieces <= index + 1
    assert num_pieces + len(translator.end()) == len(tokens)
