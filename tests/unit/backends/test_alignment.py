from contextlib import AbstractContextManager, suppress
from itertools import pairwise
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.backends import clock as clocks
from proxy.backends.base import Call, Context, Message, Segment
from proxy.backends.clock import UpstreamClock
from proxy.backends.tokens.alignment import (
    FOLLOWED_BY,
    align,
    as_in_running_text,
    pieces_of,
    without_follower,
)
from proxy.backends.tokens.chat_template import ChatTemplate
from proxy.errors import ConfigError, RequestError

token_ids = st.lists(st.integers(0, 300_000), max_size=5)
# Append a step of these tokens, or (an int) keep only that many of the steps.
changes = st.lists(token_ids | st.integers(0, 6), max_size=12)


# Context.


@given(token_ids, changes)
def test_a_context_is_its_prompt_and_then_its_steps(
    prompt: list[int], changed: list[list[int] | int]
) -> None:
    context = Context(Segment("q", tuple(prompt)))
    model: list[list[int]] = []
    for index, change in enumerate(changed):
        if isinstance(change, int):
            context.truncate(change)
            model = model[:change]
        else:
            context.append(Segment(f"step {index}", tuple(change)))
            model.append(change)
        assert [list(step.token_ids) for step in context.steps] == model
        assert context.token_ids == prompt + [token for step in model for token in step]
        assert context.bounds[0] == len(prompt)
        assert context.bounds[-1] == len(context.token_ids)
        assert len(context.bounds) == len(model) + 1
        for step, start, end in zip(model, context.bounds, context.bounds[1:], strict=False):
            assert context.token_ids[start:end] == step


@given(token_ids, st.lists(token_ids, max_size=5))
def test_a_context_made_with_steps_equals_one_that_was_given_them(
    prompt: list[int], steps: list[list[int]]
) -> None:
    segments = [Segment(str(index), tuple(step)) for index, step in enumerate(steps)]
    appended = Context(Segment("q", tuple(prompt)))
    for segment in segments:
        appended.append(segment)
    given_list = list(segments)
    assert Context(Segment("q", tuple(prompt)), given_list) == appended
    assert given_list == segments


def test_a_truncated_context_takes_new_steps_where_it_was_cut() -> None:
    context = Context(Segment("q", (1, 2)), [Segment("a", (3,)), Segment("b", (4, 5))])
    context.truncate(1)
    context.append(Segment("c", (6,)))
    assert context.token_ids == [1, 2, 3, 6]
    assert context.bounds == [2, 3, 4]
    assert [step.text for step in context.steps] == ["a", "c"]


# UpstreamClock.


class FakeTime:
    """Stands for the module `time` where the clock reads it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(clocks, "time", SimpleNamespace(perf_counter=lambda: self.now))


intervals = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 10)), max_size=8)


@given(intervals)
def test_the_clock_counts_the_union_of_overlapping_requests(
    lengths: list[tuple[int, int]],
) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        time, clock = FakeTime(monkeypatch), UpstreamClock()
        running: dict[int, AbstractContextManager[None]] = {}
        for now in range(42):
            time.now = float(now)
            for request, (start, length) in enumerate(lengths):
                if now == start:
                    running[request] = clock.running()
                    running[request].__enter__()
                if now == start + length:
                    running.pop(request).__exit__(None, None, None)
            covered = {t for start, length in lengths for t in range(start, start + length)}
            assert clock.seconds() == len([t for t in covered if t < now])


def test_the_clock_stops_when_a_request_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    time, clock = FakeTime(monkeypatch), UpstreamClock()
    with suppress(RuntimeError), clock.running():
        time.now = 2.0
        raise RuntimeError
    time.now = 9.0
    assert clock.seconds() == 2.0


def test_every_call_has_a_clock_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    time = FakeTime(monkeypatch)
    one, other = Call("s"), Call("s")
    with one.clock.running():
        time.now = 3.0
    assert (one.clock.seconds(), other.clock.seconds()) == (3.0, 0.0)


# Alignment.

TOKEN = {"\n": 198, ".": 30, "a": 81}
# How a GPT-2-like tokenizer cuts these; a letter after white space starts a token of its own.
CUTS = {".\n\n": [30, 1116], ".\n\na": [30, 198, 198, 81]}


def test_a_step_that_ends_in_a_newline_is_tokenised_as_if_text_followed() -> None:
    ids = CUTS[as_in_running_text(".\n\n")]
    assert without_follower(".\n\n", ids, TOKEN["a"]) == (30, 198, 198)


@pytest.mark.parametrize("text", ["", "12.", "a", "é", "🚀", "x\n\n.", "7. "])
def test_a_step_that_ends_in_no_newline_is_tokenised_as_it_stands(text: str) -> None:
    assert as_in_running_text(text) == text
    # Even where its last token is the letter that would stand for more text.
    assert without_follower(text, [7, TOKEN["a"]], TOKEN["a"]) == (7, TOKEN["a"])
    assert without_follower(text, [], TOKEN["a"]) == ()


@pytest.mark.parametrize("ids", [[], [30, 253], [30, 81, 198]])
def test_a_letter_that_merged_with_the_step_is_noticed(ids: list[int]) -> None:
    with pytest.raises(ValueError, match="do not end where it ends"):
        without_follower("7.\n", ids, TOKEN["a"])


@given(st.text("a. \n\t\u00a0é🚀"), st.lists(st.integers(0, 99), max_size=5))
def test_the_follower_is_taken_away_exactly_where_it_was_added(text: str, ids: list[int]) -> None:
    follows = as_in_running_text(text) != text
    assert as_in_running_text(text) == text + FOLLOWED_BY * follows
    answered = [*ids, TOKEN["a"]] if follows else ids
    assert without_follower(text, answered, TOKEN["a"]) == tuple(ids)


# ChatTemplate.

HI = (Message("system", "Be brief."), Message("user", "Hi <b> & 'you' \"é\" 🚀"))
SMOLLM = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def rendered(source: str, messages: tuple[Message, ...] = HI) -> str:
    return ChatTemplate(source).render(messages)


def test_a_template_renders_the_messages_up_to_the_answer() -> None:
    assert rendered(SMOLLM) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHi <b> & 'you' \"é\" 🚀<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_the_beginning_token_is_left_to_the_tokenizer() -> None:
    assert rendered("{{ bos_token }}{{ messages[0].content }}") == "Be brief."


def test_a_message_has_a_role_and_a_content_and_nothing_else() -> None:
    source = "{% for m in messages %}{{ m.role }}:{{ m.items() | list | length }};{% endfor %}"
    assert rendered(source) == "system:2;user:2;"


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ messages[-1].content | tojson }}", '"Hi <b> & \'you\' \\"é\\" 🚀"'),
        ("{{ {'b': 1, 'a': [2]} | tojson }}", '{"b": 1, "a": [2]}'),
        ("{{ {'b': 1} | tojson(indent=2) }}", '{\n  "b": 1\n}'),
    ],
)
def test_tojson_writes_what_transformers_writes(source: str, text: str) -> None:
    assert rendered(source) == text


def test_markup_is_not_escaped() -> None:
    assert rendered("{{ messages[-1].content }}") == HI[1].content


def test_blocks_leave_no_white_space_of_their_own() -> None:
    source = "a\n  {% if true %}\nb\n  {% endif %}\nc"
    assert rendered(source) == "a\nb\nc"


@pytest.mark.parametrize(
    "source",
    [
        "{% if tools %}tools{% endif %}",
        "{% if tools is not none %}tools{% endif %}",
        "{% if documents %}documents{% endif %}",
        "{% if enable_thinking is defined %}thinking{% endif %}",
    ],
)
def test_what_a_template_may_ask_about_is_answered(source: str) -> None:
    assert rendered(source) == ""


def test_the_date_is_there_for_templates_that_write_it() -> None:
    assert rendered("{{ strftime_now('%Y') }}").isdigit()


def test_what_a_template_refuses_is_the_client_s_error() -> None:
    source = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    )
    with pytest.raises(RequestError, match="no system role") as caught:
        rendered(source)
    assert caught.value.param == "messages"
    assert rendered(source, HI[1:]) == ""


def test_a_template_that_names_what_is_not_there_does_not_render_it_as_nothing() -> None:
    with pytest.raises(ConfigError, match="eos_token"):
        ChatTemplate("{{ messages[0].content + eos_token }}")


def test_a_template_cannot_change_or_reach_what_it_is_given() -> None:
    with pytest.raises(ConfigError):
        rendered("{% set _ = messages.append({'role': 'user'}) %}")
    with pytest.raises(ConfigError):
        rendered("{{ messages.__class__.__mro__ }}")


@pytest.mark.parametrize(
    ("source", "line"), [("{% if %}", 1), ("a\n{% for m in messages %}\n{{ m }\n", 3)]
)
def test_a_template_that_does_not_parse_is_a_configuration_error_with_its_line(
    source: str, line: int
) -> None:
    with pytest.raises(ConfigError, match=f"chat_template does not parse: line {line}: "):
        ChatTemplate(source)


def test_a_template_may_ask_for_a_field_that_a_message_lacks() -> None:
    source = "{% for m in messages %}{% if m.tool_calls %}tools{% endif %}{{ m.role }};{% endfor %}"
    assert rendered(source) == "system;user;"


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{% for m in messages %}{{ m.role }}{% break %}{% endfor %}", "system"),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}", "Be brief."),
    ],
    ids=["break", "generation"],
)
def test_a_template_may_use_the_tags_that_transformers_adds(source: str, text: str) -> None:
    assert rendered(source) == text


def test_tojson_takes_the_arguments_that_it_has_in_transformers() -> None:
    source = "{{ {'b': 'é', 'a': 1} | tojson(ensure_ascii=False, sort_keys=True) }}"
    assert rendered(source) == '{"a": 1, "b": "é"}'


def test_a_template_that_fails_in_python_is_refused_like_any_other() -> None:
    with pytest.raises(RequestError):
        rendered("{% if messages | length > 1 %}{{ messages[0].content + 1 }}{% endif %}")


@pytest.mark.parametrize(
    ("text", "tokens", "pieces"),
    [
        ("", [], ()),
        ("held back", [], ("held back",)),
        ("1 = 2", ["1", " =", " ", "2"], ("1", " =", " ", "2")),
        ("end", ["end", ".", "\n\n"], ("end", "", "")),  # a stop string was cut off
        ("a 🚀 b", ["a", " \ufffd", "\ufffd", " b"], ("a", "", "", " 🚀 b")),
        ("ab", ["a", "<|x|>", "b"], ("a", "", "b")),  # a special token has no text
        ("wor🎉", ["\ufffd"], ("wor🎉",)),
    ],
)
def test_text_is_cut_into_a_piece_a_token_as_far_as_their_strings_spell_it(
    text: str, tokens: list[str], pieces: tuple[str, ...]
) -> None:
    assert pieces_of(text, tokens) == pieces
    assert "".join(pieces) == text


# Strings of tokens.


def _latin(tokens: list[bytes]) -> list[str]:
    """Tokens as SGLang's OpenAI route writes them: what is no text, a character for each byte."""
    strings = []
    for token in tokens:
        try:
            strings.append(token.decode())
        except UnicodeDecodeError:
            strings.append(token.decode("latin-1"))
    return strings


@given(
    st.text(st.sampled_from("a \u00c3\u00a9\u00e9\u0153\u6771\U0001f680"), min_size=1), st.data()
)
def test_tokens_written_as_a_character_for_each_byte_have_their_places(
    text: str, data: st.DataObject
) -> None:
    content = text.encode()
    cuts = data.draw(st.sets(st.integers(1, len(content) - 1))) if len(content) > 1 else set()
    bounds = [0, *sorted(cuts), len(content)]
    tokens = [content[a:b] for a, b in pairwise(bounds)]
    for reach, end in zip(align(_latin(tokens), None, text).reaches, bounds[1:], strict=True):
        assert reach.least <= end <= reach.most
