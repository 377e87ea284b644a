"""Defines the state machine, its input (events), its output (commands), and the finished result."""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol, runtime_checkable

Author = Literal["student", "teacher"]
Party = Literal["student", "teacher", "scorer"]
"""Whose server it is: an author's, or that of the pair's own scorer."""
Role = Literal["student", "flawed", "revise", "teacher"]
FinishReason = Literal["stop", "length", "content_filter"]
"""`content_filter`: the server's content policy cut the text off."""
Quality = Literal[
    "empty_correction",
    "repeated_step",
    "thought_opened_twice",
    "thought_closed_twice",
    "thought_left_open",
]
"""What makes a text wrong to learn from."""
Scoring = Literal[
    "cached_logprobs",
    "prompt_logprobs",
    "echo",
    "forced_decode",
    "judge_logprob",
    "judge_sample",
    "http",
]
"""The ways to get a step's value. All but the last are the rungs of the fallback ladder, best
first: four give V_t of Eq. 5; the judges ask the teacher for a verdict, which is a different
quantity. `cached_logprobs` is vLLM's way to `prompt_logprobs` that reads its prefix cache. `http`
is no teacher's: it asks the pair's own scorer."""
JUDGES: frozenset[Scoring] = frozenset({"judge_logprob", "judge_sample"})
NO_PROBABILITIES: frozenset[Scoring] = JUDGES | {"http"}
"""The ways whose values are no probabilities of a step, and come without an entropy."""
# The words of servers and hosts for why a text ended.
_FINISH_WORDS: dict[FinishReason, tuple[str, ...]] = {
    "stop": (
        *("stop", "eos", "eos_token", "end", "end_turn", "stop_sequence", "complete", "completed"),
        *("finish", "finished", "stop_token", "word", "tool_calls", "tool_use", "function_call"),
    ),
    "length": (
        *("length", "max_tokens", "max_length", "max_new_tokens", "max_output_tokens", "limit"),
        *("model_length", "token_limit", "model_context_window_exceeded"),
    ),
    "content_filter": (
        *("content_filter", "content_filtered", "safety", "recitation", "refusal", "sensitive"),
        *("blocklist", "prohibited_content", "spii", "guardrail_intervened", "error_toxic"),
    ),
}
_FINISH_REASONS = {word: reason for reason, words in _FINISH_WORDS.items() for word in words}


def finish_reason_of(word: str) -> FinishReason | None:
    """Return the reason that a server means by its own word for it; None for an unknown word."""
    return _FINISH_REASONS.get(word.lower())


@dataclass(frozen=True, slots=True)
class Step:
    """A step a_t as it was written: its exact text, delimiter included, and its author's tokens."""

    text: str
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Following:
    """The beginning of the text that follows a step. With `is_all`, no more than that will come."""

    text: str
    is_all: bool


@dataclass(frozen=True, slots=True)
class StepScore:
    """The teacher's evidence on one step.

    `value` is V_t (Eq. 5), in [0, 1]. `entropy` is H_t in nats, or None if the caller already has
    it or the way of scoring gives none. `num_tokens` is L_t, the number of teacher tokens that
    cover the step.
    """

    value: float
    entropy: float | None
    num_tokens: int


@dataclass(frozen=True, slots=True)
class StepTrace:
    """One step of a finished trajectory, with everything that decided about it.

    `start` and `end` are character offsets into the trajectory's text, None for a step that is not
    part of it: a flawed step that `stitch: clean` left out, or a step that `skd` rejected. The
    teacher's numbers are None if no teacher scored the step; `td_error` (delta_t, Eq. 7) is None
    for the first step and for methods that look for no fall of the value.
    """

    text: str
    author: Author
    student_tokens: int
    teacher_tokens: int
    value: float | None = None
    entropy: float | None = None
    boundary: float | None = None
    td_error: float | None = None
    safe: bool | None = None
    start: int | None = None
    end: int | None = None


@dataclass(frozen=True, slots=True)
class Span:
    """Characters `start` to `end` (exclusive) of the output, and their role in it."""

    role: Role
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Breached:
    """The student strayed at step `breach`; the teacher takes over at `bifurcation`."""

    breach: int
    bifurcation: int


@dataclass(frozen=True, slots=True)
class FoundAnswer:
    """The answer that was read from one of several texts, None if it has none that can be read.

    `is_right` compares it with the reference, None without a reference or where that cannot be
    said. Equal answers have the same `group`; one that is None equals no other.
    """

    text: str | None
    is_right: bool | None = None
    group: int | None = None


@dataclass(frozen=True, slots=True)
class Chosen:
    """The correction that was kept of several, by its index, and what decided.

    `answers` has the answer that was read from each, None where none was. `lost` are those whose
    server failed, so that nothing was read.
    """

    index: int
    by: Literal["reference", "majority"]
    answers: tuple[str | None, ...]
    lost: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Trajectory:
    """The finished output: `spans` are contiguous and cover `text`.

    `breach` (t) and `bifurcation` (t*) are step indices, None without a breach; they are those of
    the first breach, and `breaches` has all if there are two or more. `student_tokens` and
    `teacher_tokens` count each author's tokens in `text`; the revise token is neither's. `chosen`
    is None unless one of several corrections was kept.
    """

    text: str
    spans: tuple[Span, ...]
    steps: tuple[StepTrace, ...]
    breach: int | None
    bifurcation: int | None
    finish_reason: FinishReason
    student_tokens: int
    teacher_tokens: int
    breaches: tuple[Breached, ...] = ()
    chosen: Chosen | None = None


# Events: the monitor's input.


class Wrote(NamedTuple):
    """Text of the running write, one piece per token.

    A token that ends inside a multi-byte character has an empty piece; the token that completes the
    character has all of it. If `Write` asked for them, `logprobs` has the log-probabilities of each
    piece's tokens: of one token, or of none for text that comes after its tokens, as half
    characters do.

    Not a dataclass: one is made for every event of a stream, and a tuple takes a third of the time.
    """

    write_id: int
    pieces: tuple[str, ...]
    logprobs: tuple[tuple[float, ...], ...] | None = None


@dataclass(frozen=True, slots=True)
class WriteEnded:
    """The model ended its text, reached its token limit, or was cut off by a content filter."""

    write_id: int
    reason: FinishReason


@dataclass(frozen=True, slots=True)
class Scored:
    """The answer to `Score`: one score per new step, in order.

    `next_entropy` is H of the state after the last new step, if the server gave it. With `is_full`
    the last new steps have no scores, and no later step gets one: the teacher's window holds no
    more.
    """

    scores: tuple[StepScore, ...]
    next_entropy: float | None = None
    is_full: bool = False


Event = Wrote | WriteEnded | Scored


# Commands: the monitor's output. Each describes its whole context, so that the engine, which obeys
# it, needs no memory of earlier commands.


@dataclass(frozen=True, slots=True)
class Write:
    """Let `author` continue the question plus `steps`, for at most `max_tokens` of its tokens.

    With `logprobs`, its text must come with log-probabilities. With `is_candidate`, it is one of
    several texts of which one is kept: where its server fails, the others may suffice.
    """

    write_id: int
    author: Author
    steps: tuple[str, ...]
    max_tokens: int
    logprobs: bool = False
    is_candidate: bool = False


@dataclass(frozen=True, slots=True)
class Halt:
    """Cancel that write at once; any text that still comes of it is ignored."""

    write_id: int


@dataclass(frozen=True, slots=True)
class Pause:
    """The author of a write is far ahead: let it write no more until `Resume` or `Halt`.

    Its text so far stays, and any text that still comes is kept.
    """

    write_id: int


@dataclass(frozen=True, slots=True)
class Resume:
    """Let the author of a paused write continue where it stopped."""

    write_id: int


@dataclass(frozen=True, slots=True)
class Score:
    """Let the teacher score the last `num_new` of `steps`; the other steps are their context.

    With `entropy_known`, H of the first new step is known already, so its top-k is not needed.
    """

    steps: tuple[str, ...]
    num_new: int
    entropy_known: bool


@dataclass(frozen=True, slots=True)
class ReadAnswers:
    """Read the answers of these texts, of which one is kept. There are none if all were lost."""

    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Keep:
    """Say that the text of this write is kept, of several, and why. Information only."""

    write_id: int
    chosen: Chosen


@dataclass(frozen=True, slots=True)
class Emit:
    """This text of the output can no longer change.

    `num_tokens` tokens of its author's are complete with it. Information only.
    """

    text: str
    num_tokens: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Judged:
    """The verdict on step `index`. Information only."""

    index: int
    step: StepTrace


@dataclass(frozen=True, slots=True)
class Finish:
    """The trajectory is complete; every character of its text was emitted."""

    trajectory: Trajectory


Command = (
    Write | Halt | Pause | Resume | Score | ReadAnswers | Keep | Emit | Judged | Breached | Finish
)


Notice = Judged | Breached | Chosen
"""A decision, as a client may follow it."""


class Monitor(Protocol):
    """The state machine of a method of making a trajectory."""

    def start(self) -> list[Command]:
        """The commands that begin the trajectory."""
        ...

    def handle(self, event: Event) -> list[Command]:
        """The commands that follow from an event; raises ValueError for an impossible score."""
        ...


@runtime_checkable
class ScoringMonitor(Monitor, Protocol):
    """A state machine that has steps scored."""

    def following(self, num_steps: int, num_chars: int) -> Following:
        """Return the text after the first `num_steps` steps, its first `num_chars` at least, as far
        as its author has written it.
        """
        ...


@runtime_checkable
class ChoosingMonitor(ScoringMonitor, Protocol):
    """A state machine that has several corrections written, and keeps one of them."""

    def lost(self, write_id: int) -> list[Command]:
        """The commands that follow where the server of a candidate has failed."""
        ...

    def read(self, answers: tuple[FoundAnswer, ...]) -> list[Command]:
        """The commands that follow from the answer to `ReadAnswers`: one for each text."""
        ...
