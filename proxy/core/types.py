"""What goes into the state machine (events), what comes out (commands), and the finished result."""

from dataclasses import dataclass
from typing import Literal

Author = Literal["student", "teacher"]
Role = Literal["student", "flawed", "revise", "teacher"]
FinishReason = Literal["stop", "length"]
Scoring = Literal["prompt_logprobs", "echo", "forced_decode", "judge_logprob", "judge_sample"]
"""The ways to a teacher's values, best first: the rungs of the fallback ladder. The first three
give V_t of Eq. 5; the judges ask the teacher for a verdict, which is another quantity."""
JUDGES: frozenset[Scoring] = frozenset({"judge_logprob", "judge_sample"})


@dataclass(frozen=True, slots=True)
class Step:
    """A step a_t as it was written: its exact text, delimiter included, and its author's tokens."""

    text: str
    num_tokens: int


@dataclass(frozen=True, slots=True)
class StepScore:
    """The teacher's evidence on one step.

    `value` is V_t (Eq. 5), in [0, 1]. `entropy` is H_t in nats, or None where the caller already
    holds it or the way of scoring knows none. `num_tokens` is L_t, the teacher tokens that cover
    the step.
    """

    value: float
    entropy: float | None
    num_tokens: int


@dataclass(frozen=True, slots=True)
class StepTrace:
    """One step of a finished trajectory, with everything that decided about it.

    `start` and `end` are character offsets into the trajectory's text, None for a step that is not
    part of it: a flawed one that `stitch: clean` left out, one that `skd` rejected. The teacher's
    numbers are None where no teacher scored the step, and `td_error` (delta_t, Eq. 7) is None for
    the first step and where no fall of the value is asked for.
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
    """Characters `start` to `end` (exclusive) of the output, and who they belong to."""

    role: Role
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Trajectory:
    """The finished output: `spans` are contiguous and cover `text`.

    `breach` (t) and `bifurcation` (t*) are step indices, None without a breach. `student_tokens`
    and `teacher_tokens` were written by each and are part of `text`; the revise token is neither's.
    """

    text: str
    spans: tuple[Span, ...]
    steps: tuple[StepTrace, ...]
    breach: int | None
    bifurcation: int | None
    finish_reason: FinishReason
    student_tokens: int
    teacher_tokens: int


# Events: what the outside tells the monitor.


@dataclass(frozen=True, slots=True)
class Wrote:
    """Text of the running write, one piece per token.

    A token that ends inside a multi-byte character brings an empty piece; the token that completes
    the character brings it whole. Where `Write` asked for them, `logprobs` has, for each piece, the
    log-probabilities of the tokens that it stands for: of one, or of none for text that comes after
    its tokens, as half characters do.
    """

    write_id: int
    pieces: tuple[str, ...]
    logprobs: tuple[tuple[float, ...], ...] | None = None


@dataclass(frozen=True, slots=True)
class WriteEnded:
    """The model ended its text ("stop") or ran into its token limit ("length")."""

    write_id: int
    reason: FinishReason


@dataclass(frozen=True, slots=True)
class Scored:
    """The answer to `Score`: one score per new step, in order.

    `next_entropy` is H of the state after the last of them, where the server gave it.
    """

    scores: tuple[StepScore, ...]
    next_entropy: float | None = None


Event = Wrote | WriteEnded | Scored


# Commands: what the monitor wants done. Each describes its whole context, so that whoever obeys
# needs no memory of earlier ones.


@dataclass(frozen=True, slots=True)
class Write:
    """Let `author` continue the question plus `steps`, for at most `max_tokens` of its tokens.

    `logprobs`: they must come with its text.
    """

    write_id: int
    author: Author
    steps: tuple[str, ...]
    max_tokens: int
    logprobs: bool = False


@dataclass(frozen=True, slots=True)
class Halt:
    """Cancel that write at once; whatever it still brings is ignored."""

    write_id: int


@dataclass(frozen=True, slots=True)
class Pause:
    """The author of a write is far ahead: let it write no more until `Resume` or `Halt`.

    What it has written stays, and what still comes is taken.
    """

    write_id: int


@dataclass(frozen=True, slots=True)
class Resume:
    """The author of a paused write goes on where it stopped."""

    write_id: int


@dataclass(frozen=True, slots=True)
class Score:
    """Let the teacher score the last `num_new` of `steps`, the others being their context.

    `entropy_known`: H of the first new step is known already, so its top-k need not be asked for.
    """

    steps: tuple[str, ...]
    num_new: int
    entropy_known: bool


@dataclass(frozen=True, slots=True)
class Emit:
    """This text of the output can no longer change."""

    text: str


@dataclass(frozen=True, slots=True)
class Judged:
    """Step `index` was decided on. Information only."""

    index: int
    step: StepTrace


@dataclass(frozen=True, slots=True)
class Breached:
    """The student strayed at step `breach`; the teacher takes over at `bifurcation`."""

    breach: int
    bifurcation: int


@dataclass(frozen=True, slots=True)
class Finish:
    """The trajectory is complete; every character of its text was emitted."""

    trajectory: Trajectory


Command = Write | Halt | Pause | Resume | Score | Emit | Judged | Breached | Finish
