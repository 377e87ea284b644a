"""Judges answers by the rule `number`: the number must be that of the reference."""

import re
from dataclasses import dataclass
from typing import Final

from synth_client.judging.judgement import Judgement, Rule, final_part
from synth_client.judging.numbers.plain_text import last_row, plain
from synth_client.judging.numbers.quantity import Quantity, equal
from synth_client.judging.numbers.runs import NUMBER_WORD, Group, numbers_of
from synth_client.judging.place import Box, labelled, last_boxes, sentences_from_the_end
from synth_client.judging.side_clause import stated_before

DOUBT: Final = "it is open whether the answer is the reference"
IN_WORDS: Final = "the answer's number is written in words"
_LONGEST: Final = 2000
# What an answer's first clause ends with: reasons and remarks have numbers of their own.
_CLAUSE: Final = re.compile(
    r"[.!?](?=\s+[A-Z(]|\s*\n)|;|,(?=\s*(?!and\b|or\b)[A-Za-z]{2})|\((?=\s*(?!base)[A-Za-z]{2})"
    r"|\b(?:because|since|where|which|after|as|(?<!or )so|given|wait|but)\b"
    r"|\s[\u2013\u2014-]\s(?=[A-Za-z])",
    re.IGNORECASE,
)
# Dashes that a minus is not, unless one stands right before its number.
_DASHED: Final = r"(?:\u2013\s{1,4}|(?:\u2014|--)\s{0,4})(?=[\d.])"
_DASH: Final = re.compile(rf"^\s{{0,4}}{_DASHED}")
_LED_UP: Final = r"(?:\b(?:is|are|be|[Aa]nswer)|[:={($\n]|^)"
_LOOSE_MINUS: Final = re.compile(r"^\s*[-\u2212]\s+(?=[\d.(\\])")
# `\textbf{(C)}\ 12`, as the answers of AMC problems are set.
_CHOICE_LABEL: Final = re.compile(
    r"^\s*(?:\\(?:text(?:bf|rm)?|math(?:bf|rm))\s*\{\s*\(([A-E])\)\s*\}|\(([A-E])\)(?=\s|\\ ))"
    r"[\s~:.]*(?:\\[ ,;]\s*)*(?=[^\s.}])"
)
# The left side of an equation in unknowns, whose right side is no answer.
_IN_UNKNOWNS: Final = re.compile(
    r"(?<![A-Za-z\\])[A-Za-z]\s*[-+*/^]|[-+*/^]\s*\d*[A-Za-z](?![A-Za-z])|\d[A-Za-z](?![A-Za-z])"
)
_SAYS: Final = re.compile(
    r"\b(?:is|are|was|be|equals?|gives?|has|have|makes?)\s+"
    r"(?:(?:only|exactly|just|then|thus|equal to)\s+)?[$(]*$"
)
_EQUALS: Final = re.compile(r"[=≈](?!.*[=≈]\s*\S)", re.DOTALL)
_NEXT_UNKNOWN: Final = re.compile(r"[=≈].*(?:[,;]|\b(?:and|or)\b)\s*[A-Za-z]\w?\s*$", re.DOTALL)
# Such a number counts parts of the text.
_NUMBERED: Final = re.compile(
    r"\b(?:step|part|case|problem|question|figure|equation|example|section)\s*[#(]?$", re.IGNORECASE
)
_ITEM: Final = re.compile(r"\W{0,4}\d{1,2}[.)]\s+[A-Za-z*$\\(]?")
# What comes after it replaces the answer before it, or doubts it.
_TAKES_BACK: Final = re.compile(
    r"[\s.,;!?(-]{1,8}(?:oh |hmm,? |but )?(?:no|wait|actually|sorry|correction|oops"
    r"|(?:I am |I'm )?(?:not (?:really |quite |entirely )?(?:sure|certain)|unsure))\b",
    re.IGNORECASE,
)
# "4, not 5" gives 4.
_REJECTED: Final = re.compile(r"(?:,|\(|\band)\s*(?:not|never|rather than|instead of)\s*[$(]*$")
_JOINTS: Final = frozenset({"", "and", "or", "to", "through", "\u2013", ":"})
_WRITTEN_OUT: Final = re.compile(NUMBER_WORD, re.IGNORECASE)
_DIGIT: Final = re.compile("[\\d\u00bc-\u00be\u2150-\u215e\u00b2\u00b3\u00b9\u2070-\u209c]")


@dataclass(frozen=True, slots=True)
class NumberAnswer:
    """The numbers that are the answer together.

    `in_doubt` says whether a match decides nothing, `written` is the text with what is around the
    numbers, such as the brackets of a pair.
    """

    numbers: tuple[Quantity, ...]
    in_doubt: bool = False
    written: str = ""

    @property
    def text(self) -> str:
        return ", ".join(number.text for number in self.numbers)


def with_doubtful_dashes(judge: Rule) -> Rule:
    """Return the rule for answers that a dash may part from the words, or make negative."""

    def judged(output: str, answer: str | None) -> Judgement:
        found = judge(output, answer)
        number = _DASH.sub("", found.predicted or "")
        if answer is None or found.correct is None or not number:
            return found
        is_dashed = re.search(rf"{_LED_UP}\s{{0,4}}{_DASHED}{re.escape(number)}", output)
        if is_dashed is None or (not found.correct and number not in answer):
            return found
        return Judgement(found.predicted, None, DOUBT)

    return judged


def _judge(output: str, answer: str | None) -> Judgement:
    """Judge whether the number in the output is that of the reference.

    A number of another form may be equal, too: 3/2 is 1.5. Several numbers are no answer where one
    was asked for.
    """
    text = final_part(output)
    found = number_answer(text)
    predicted = found.text if found is not None else None
    if answer is None:
        return Judgement(predicted, None)
    known = reference_number(answer)
    if known is None:
        return Judgement(predicted, None, f"no number in the reference answer {answer[:80]!r}")
    if found is None:
        is_worded = is_in_words(_first(text))
        return Judgement(None, None if is_worded else False, IN_WORDS if is_worded else None)
    verdict = _verdict(found, known)
    return Judgement(predicted, verdict, DOUBT if verdict is None else None)


judge_number = with_doubtful_dashes(_judge)


def is_in_words(text: str) -> bool:
    """Return whether a number is written out in the text."""
    return _WRITTEN_OUT.search(text) is not None


def _verdict(found: NumberAnswer, known: Quantity) -> bool | None:
    verdicts = [equal(number, known) for number in found.numbers]
    if len(verdicts) == 1:
        return None if verdicts[0] and found.in_doubt else verdicts[0]
    might_be = any(verdict is not False for verdict in verdicts)
    return None if found.in_doubt and might_be else False


def _first(output: str) -> str:
    """Return the text in which the answer should be."""
    boxed = last_boxes(output)
    if boxed:
        return boxed[-1].content
    return next(labelled(output), None) or next(sentences_from_the_end(output), "")


def number_answer(text: str) -> NumberAnswer | None:
    """Return the number of the answer, None if there is none.

    It is in the last box, else in what "the answer is" announces, else the last of the text.
    """
    found = last_boxes(text)
    if found:
        final = (of_clause(one) for one in labelled(text[found[-1].end :], by="final"))
        return next(filter(None, final), None) or _of_boxes(found)
    is_passed_over = False
    for announced in labelled(text):
        answer = of_clause(announced)
        if answer is not None:
            return NumberAnswer(answer.numbers, answer.in_doubt or is_passed_over)
        is_passed_over = True
    for sentence in sentences_from_the_end(text):
        answer = last_of(sentence)
        if answer is not None:
            return NumberAnswer(answer.numbers, answer.in_doubt or is_passed_over)
    return None


def is_said(before: str) -> bool:
    """Return whether the text before a number says that the number is the answer."""
    return _SAYS.search(before) is not None


def last_of(sentence: str) -> NumberAnswer | None:
    """Return the last number of a sentence, with those that it is joined to.

    In "2 * 5 = 10 eggs in 2 days" it is open whether the sum or the last number is the answer, but
    not in "2 * 5 = 10, so the number of days is 2". A number that is stated before a clause is the
    answer in place of the clause's: "the remainder is 4 when divided by 7".
    """
    if _DIGIT.search(sentence) is None:
        return None
    text = plain(sentence)
    groups, labels = _without_labels(text, numbers_of(text))
    if not groups:
        return _answer(text, labels, in_doubt=True) if labels else None
    while len(groups) > 1 and _REJECTED.search(text[: groups[-1].start]):
        groups = groups[:-1]
    stated = stated_before(text, [(group.start, group.end) for group in groups])
    if stated is not None:
        answer = groups[stated.index]
        if stated.is_sure:
            return _answer(text, [answer], in_doubt=len(answer.runs) > 1)
        return _answer(text, [answer, groups[-1]], in_doubt=True)
    last_equals = _EQUALS.search(text)
    if last_equals is not None and _NEXT_UNKNOWN.search(text[: last_equals.start()]):
        return _answer(text, groups, in_doubt=True)
    equals = None if is_said(text[: groups[-1].start]) else last_equals
    sums = [group for group in groups[:-1] if equals is not None and group.start >= equals.end()]
    return _answer(text, [*sums[:1], groups[-1]], in_doubt=len(groups[-1].runs) > 1)


def _without_labels(text: str, groups: list[Group]) -> tuple[list[Group], list[Group]]:
    """Return the numbers, and the labels of list items; labels such as "Step 2:" are left out."""
    if groups and _ITEM.fullmatch(text, 0, groups[0].end + 3):
        return groups[1:], groups[:1]
    numbers: list[Group] = []
    for group in groups:
        if not _NUMBERED.search(text[: group.start]):
            numbers.append(group)
        elif group.joint == ":":
            numbers.append(Group(group.runs[1:]))
    return numbers, []


def _of_boxes(found: list[Box]) -> NumberAnswer | None:
    answers = [answer for box in found if (answer := of_box(box)) is not None]
    numbers = tuple(number for answer in answers for number in answer.numbers)
    in_doubt = any(answer.in_doubt for answer in answers) or not found[-1].is_closed
    return NumberAnswer(numbers, in_doubt) if numbers else None


def of_box(box: Box) -> NumberAnswer | None:
    """Return the numbers of a box; a sign before it, or a unit behind it, belongs to its number."""
    answer = of_content(box.content)
    if answer is None or len(answer.numbers) != 1:
        return answer
    text = plain(f"{box.before}{without_bullet(last_row(box.content))}{box.after}")
    wanted = answer.numbers[0].text
    runs = [run for group in numbers_of(text) for run in group.runs]
    whole = next((run.quantity for run in runs if wanted in run.quantity.text), None)
    return answer if whole is None else NumberAnswer((whole,), answer.in_doubt, whole.text)


def of_content(content: str) -> NumberAnswer | None:
    """Return the numbers of a text that is the answer and nothing else."""
    if len(content) > _LONGEST:
        return None
    text = plain(without_bullet(last_row(content)))
    groups = _after_equals(text)
    is_equation = text.count("=") == 1 and _IN_UNKNOWNS.search(text.partition("=")[0]) is not None
    return _answer(text, groups, in_doubt=is_equation) if groups else None


def without_bullet(content: str) -> str:
    """Return the content without the label of a choice, and with its minus at its number."""
    return _LOOSE_MINUS.sub("-", _CHOICE_LABEL.sub("", content))


def of_clause(announced: str) -> NumberAnswer | None:
    """Return the numbers of the first clause in what was announced as the answer."""
    text = plain(announced)
    starts = [one.start() for one in _CLAUSE.finditer(text)]
    for end in [*starts, len(text)]:
        groups = _after_equals(text[:end])
        if groups:
            if _TAKES_BACK.match(text, groups[-1].end):
                return _answer(text, numbers_of(text), in_doubt=True)
            are_certain = all(group.joint in _JOINTS for group in groups)
            return _answer(text[:end], groups, in_doubt=not are_certain)
    return None


def _answer(text: str, groups: list[Group], *, in_doubt: bool = False) -> NumberAnswer:
    """Return these numbers; if there are words between them, it is open which is the answer."""
    are_unknowns = bool(_NEXT_UNKNOWN.search(text[: groups[-1].start].rstrip("=≈ ")))
    in_doubt = in_doubt or (len(groups) > 1 and not are_unknowns)
    start, end = groups[0].start, groups[-1].end
    numbers = tuple(run.quantity for group in groups for run in group.runs)
    if (
        len(numbers) > 1
        and numbers[0].values
        and {one.values for one in numbers} == {numbers[0].values}
    ):
        return NumberAnswer(numbers[-1:], written=numbers[-1].text)
    if len(numbers) > 1:
        while text[start - 1 : start] in {"(", "[", "{"} and text[end : end + 1] in {")", "]", "}"}:
            start, end, in_doubt = start - 1, end + 1, False
    return NumberAnswer(numbers, in_doubt, text[start:end])


def _after_equals(text: str) -> list[Group]:
    """Return the numbers after the last equals sign, or all if there is none after it.

    Where several unknowns have a value, as in `x = 2 or x = 3`, all of them are the answer.
    """
    found = _EQUALS.search(text)
    if found is None or _NEXT_UNKNOWN.search(text[: found.start()]):
        return numbers_of(text)
    after = [group for group in numbers_of(text) if group.start >= found.end()]
    return after or numbers_of(text)


def reference_number(reference: str) -> Quantity | None:
    """Return the one number of a reference, None if it has none, or several."""
    _, mark, after = reference.rpartition("####")
    if not mark and (len(reference) > _LONGEST or last_boxes(reference) or _is_labelled(reference)):
        found = number_answer(reference)
    else:
        found = of_content(after if mark else reference)
    if found is None or len(found.numbers) != 1 or found.in_doubt:
        return None
    return found.numbers[0] if found.numbers[0].values else None


def _is_labelled(reference: str) -> bool:
    return next(labelled(reference), None) is not None
