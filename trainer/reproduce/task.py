"""Defines a task of the comparison: its problems, its worked solutions, and the judge of a step."""

import random
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar, Final, Literal, NamedTuple

Level = Literal["easy", "hard"]
Mistake = Literal["choice", "result", "place", "answer", "other"]
"""The kind of a mistake:

* choice: a step that is right in itself, but after which nothing can be right any more,
* result: a wrong result,
* place: a step that cannot follow here,
* answer: a final answer that is not what the steps have shown,
* other: not a step at all, or no answer.
"""

RULE: Final = f"{__name__}:judge_answer"
"""The rule that judges answers, as `--verify` takes it."""
DELIMITER: Final = "\n\n"
"""The end of a step."""
DOUBT: Final = "However,"
"""The step after which a solution is taken up again where it went wrong."""
_OPENING: Final = re.compile(r"Start from (\d+)\.")
_ANSWER: Final = re.compile(r"\\boxed\{(\d+(?:,\d+)*)\}\.?")
_SHARE_OF_CHOICES: Final = 0.8
_SHARE_OF_SECOND_SLIPS: Final = 0.3
_ERRORS: Final = (-10, -2, -1, 1, 2, 10)


class State(NamedTuple):
    """A place in a solution: the value that was reached, and the terms that are left and done."""

    value: int
    left: tuple[int, ...]
    done: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Exercise:
    """A problem in words; a solution goes from the state `start` to `answer`."""

    id: str
    text: str
    level: Level
    start: State
    answer: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """The judgement of a step: its mistake, if it has one.

    `is_lost` says of a step without a mistake of its own that it continues from one. An opening
    that is right only repeats the problem.
    """

    mistake: Mistake | None
    is_lost: bool = False
    is_opening: bool = False

    @property
    def is_wrong(self) -> bool | None:
        """True if the step shows that it is wrong, None if only what follows can show that.

        None of an opening, too: it is so easy that it would hide how many right steps are caught.
        """
        if self.mistake == "choice" or (self.mistake is None and (self.is_lost or self.is_opening)):
            return None
        return self.mistake is not None


@dataclass(frozen=True, slots=True)
class Judged:
    """A verdict for every step, and the first mistake that the solution does not correct."""

    verdicts: tuple[Verdict, ...]
    first_mistake: Mistake | None


class Task(ABC):
    """A kind of problems that are solved step by step; each step adds a term to a value."""

    name: ClassVar[str]
    step: ClassVar[re.Pattern[str]]
    """A step, with the groups `value`, `term` and `result`."""

    has_opening: ClassVar[bool] = False
    """A solution says first what it starts from. So its first choice has a safe step before it, and
    can be what a later breach goes back to.
    """

    @abstractmethod
    def worded(self, value: int, term: int, result: int) -> str:
        """Return a step in words."""

    @abstractmethod
    def term_of(self, said: str) -> int:
        """Return the term that a step says."""

    @abstractmethod
    def problem(self, name: str, rng: random.Random, level: Level) -> Exercise:
        """Draw a problem."""

    @abstractmethod
    def right_terms(self, state: State) -> Sequence[int]:
        """Return the terms from which the answer can still be reached."""

    @abstractmethod
    def wrong_terms(self, state: State) -> Sequence[int]:
        """Return the terms that a careless solver may take instead."""

    @abstractmethod
    def after(self, state: State, term: int, value: int) -> State | None:
        """Return the state after a term was taken; None if the term cannot be taken here."""

    @abstractmethod
    def is_end(self, state: State) -> bool:
        """Return whether the answer comes next."""

    @abstractmethod
    def answer(self, state: State) -> str:
        """Return the answer at the end."""

    def is_dead(self, state: State) -> bool:
        """Return whether the answer can no longer be reached."""
        return not self.is_end(state) and not self.right_terms(state)

    def labels(self, problem: Exercise, steps: Sequence[str]) -> list[bool | None]:
        """Return of each step whether it is wrong, up to the first that shows it; see `Verdict`.

        `steps` are texts as the proxy cuts them. Such a step holds several of ours where a doubt
        stands before it.
        """
        verdicts = iter(self.judged(problem, "".join(steps)).verdicts)
        found: list[bool | None] = []
        for step in steps:
            num = sum(bool(text.strip()) for text in step.split(DELIMITER))
            own = [verdict.is_wrong for verdict in islice(verdicts, num)]
            found.append(True if True in own else own[-1] if own else None)
            if found[-1]:
                break
        return found

    def problems(self, name: str, num: int, level: Level) -> Iterator[Exercise]:
        """Yield `num` different problems of a level; the name is the seed."""
        rng = random.Random(name)  # noqa: S311 - reproducible, not secret
        seen: set[str] = set()
        while len(seen) < num:
            problem = self.problem(f"{name}-{len(seen)}", rng, level)
            if problem.text not in seen:
                seen.add(problem.text)
                yield problem

    def worked(self, problem: Exercise, rng: random.Random, slips: float = 0.0) -> str:
        """Return a solution that is right in the end.

        With the probability `slips` it goes wrong once or twice on its way, notices it one to
        three steps later, and takes up the solution where it was right. It cannot take a wrong
        choice where there is none, and then makes fewer slips.
        """
        num_slips = (1 + (rng.random() < _SHARE_OF_SECOND_SLIPS)) if rng.random() < slips else 0
        steps = list(self._right_steps(problem, rng))
        slipped = self._slipped([state for state, _ in steps], num_slips, rng)
        text = self._opened(problem)
        for index, (state, term) in enumerate(steps):
            if index in slipped:
                text += [slipped[index], f"{DOUBT}{DELIMITER}"]
            text.append(self._said(state.value, term, state.value + term))
        return f"{''.join(text)}\\boxed{{{self._answer_of(steps)}}}"

    def redone(self, problem: Exercise, rng: random.Random) -> tuple[str, str]:
        """Return a solution that goes wrong once, cut before it notices that.

        The beginning is empty if nothing can go wrong.
        """
        steps = list(self._right_steps(problem, rng))
        slipped = self._slipped([state for state, _ in steps], 1, rng)
        at = next(iter(slipped), 0)
        said = [self._said(state.value, term, state.value + term) for state, term in steps]
        answer = f"\\boxed{{{self._answer_of(steps)}}}"
        if not slipped:
            return "", "".join([*self._opened(problem), *said, answer])
        begun = "".join([*self._opened(problem), *said[:at], slipped[at]])
        return begun, "".join([f"{DOUBT}{DELIMITER}", *said[at:], answer])

    def _opened(self, problem: Exercise) -> list[str]:
        return [f"Start from {problem.start.value}.{DELIMITER}"] if self.has_opening else []

    def _right_steps(self, problem: Exercise, rng: random.Random) -> Iterator[tuple[State, int]]:
        """Yield the states of a solution without mistakes, each with the term that is taken."""
        state = problem.start
        for _ in range(self.num_steps(problem)):
            term = rng.choice(self.right_terms(state))
            yield state, term
            state = self._next(state, term)

    def _answer_of(self, steps: Sequence[tuple[State, int]]) -> str:
        return self.answer(self._next(*steps[-1]))

    def _said(self, value: int, term: int, result: int) -> str:
        return self.worded(value, term, result) + DELIMITER

    def _slipped(
        self, states: Sequence[State], num_slips: int, rng: random.Random
    ) -> dict[int, str]:
        """Return the texts of at most `num_slips` slips by their places."""
        found: dict[int, str] = {}
        for _ in range(num_slips):
            is_choice = rng.random() < _SHARE_OF_CHOICES
            places = [
                place
                for place, state in enumerate(states)
                if place not in found and (not is_choice or self.wrong_terms(state))
            ]
            if places:
                place = rng.choice(places)
                found[place] = self._slip(states[place], rng, is_choice=is_choice)
        return found

    @abstractmethod
    def num_steps(self, problem: Exercise) -> int:
        """Return the number of steps of a solution without mistakes."""

    def _slip(self, state: State, rng: random.Random, *, is_choice: bool) -> str:
        """Return a wrong step and the one to three steps that follow before it is noticed."""
        if is_choice:
            term, error = rng.choice(self.wrong_terms(state)), 0
        else:
            term = rng.choice(self.right_terms(state))
            error = rng.choice([one for one in _ERRORS if state.value + term + one >= 0])
        text: list[str] = []
        for _ in range(rng.randint(2, 4)):
            result = state.value + term + error
            text.append(self._said(state.value, term, result))
            state, error = self.astray(state, term, result), 0
            fits = self.careless_terms(state)
            if not fits:
                break
            term = rng.choice(fits)
        return "".join(text)

    @abstractmethod
    def astray(self, state: State, term: int, value: int) -> State:
        """Return the state in which a careless solver is after a term, right or wrong."""

    @abstractmethod
    def careless_terms(self, state: State) -> Sequence[int]:
        """Return the terms with which a solver continues that has not noticed a mistake."""

    def _next(self, state: State, term: int) -> State:
        reached = self.after(state, term, state.value + term)
        if reached is None:
            raise AssertionError((state, term))
        return reached

    def judged(self, problem: Exercise, solution: str) -> Judged:
        """Judge every step of a solution.

        After a doubt, a step is taken up from the last state that it fits, and what lies between is
        forgotten, with its mistakes. So a solution that corrects itself has no mistake.
        """
        path: list[tuple[State, Mistake | None]] = [(problem.start, None)]
        verdicts: list[Verdict] = []
        is_doubt = False
        for text in solution.split(DELIMITER):
            step = self.step.fullmatch(text.strip())
            opening = _OPENING.fullmatch(text.strip())
            boxed = _ANSWER.fullmatch(text.strip())
            if step is not None:
                value, result = int(step["value"]), int(step["result"])
                term = self.term_of(step["term"])
                if is_doubt:
                    _go_back(path, self, value, term)
                state, mistake = self._taken(path[-1][0], value, term, result)
                verdicts.append(Verdict(mistake, _is_lost(path)))
                path.append((state, mistake))
            elif opening is not None and self.has_opening and not verdicts:
                is_right = int(opening[1]) == problem.start.value
                verdicts.append(Verdict(None if is_right else "place", is_opening=True))
                if not is_right:
                    path.append((State(int(opening[1]), problem.start.left), "place"))
            elif text.strip() == DOUBT:
                verdicts.append(Verdict(None, _is_lost(path)))
            elif boxed is not None:
                state = path[-1][0]
                answered = self.is_end(state) and _is_same(boxed[1], self.answer(state))
                verdicts.append(Verdict(None if answered else "answer", _is_lost(path)))
            elif text.strip():
                verdicts.append(Verdict("other", _is_lost(path)))
                path.append((path[-1][0], "other"))
            is_doubt = text.strip() == DOUBT
        return Judged(tuple(verdicts), self._first(problem, solution, path, verdicts))

    def _first(
        self,
        problem: Exercise,
        solution: str,
        path: Sequence[tuple[State, Mistake | None]],
        verdicts: Sequence[Verdict],
    ) -> Mistake | None:
        if _is_same(_last_answer(solution), problem.answer):
            return None
        on_the_way = next((mistake for _, mistake in path if mistake is not None), None)
        if on_the_way is not None:
            return on_the_way
        return "answer" if verdicts and verdicts[-1].mistake == "answer" else "other"

    def _taken(
        self, state: State, value: int, term: int, result: int
    ) -> tuple[State, Mistake | None]:
        reached = self.after(state, term, result) if value == state.value else None
        if reached is None:
            return State(result, state.left, state.done), "place"
        if value + term != result:
            return reached, "result"
        is_new = self.is_dead(reached) and not self.is_dead(state)
        return reached, "choice" if is_new else None


def _go_back(path: list[tuple[State, Mistake | None]], task: Task, value: int, term: int) -> None:
    """Cut the path after the last state from which the step can be taken, if there is one."""
    for index in range(len(path) - 1, -1, -1):
        state = path[index][0]
        if state.value == value and task.after(state, term, value + term) is not None:
            del path[index + 1 :]
            return


def _is_lost(path: Sequence[tuple[State, Mistake | None]]) -> bool:
    return any(mistake is not None for _, mistake in path)


def judge_answer(record: Mapping[str, Any]) -> tuple[str | None, bool | None]:
    """Judge a record, as a verification rule, by its last answer, in whatever order."""
    predicted = _last_answer(record["output"])
    answer = record["answer"]
    return predicted, None if answer is None else _is_same(predicted, answer)


def _last_answer(solution: str) -> str | None:
    found: list[str] = _ANSWER.findall(solution)
    return found[-1] if found else None


def _is_same(predicted: str | None, answer: str) -> bool:
    return predicted is not None and _sorted(predicted) == _sorted(answer)


def _sorted(answer: str) -> list[int]:
    return sorted(int(number) for number in answer.split(","))
