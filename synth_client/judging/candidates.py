"""Reads the answers that the rule `math` compares: each as a number, or as a formula."""

import re
from dataclasses import dataclass, replace
from typing import Final

from synth_client.judging.latex import latex_of
from synth_client.judging.number_rule import (
    NumberAnswer,
    is_said,
    last_of,
    of_box,
    of_clause,
    of_content,
    without_bullet,
)
from synth_client.judging.numbers.plain_text import Formula, formulas, last_row, plain
from synth_client.judging.numbers.quantity import Quantity
from synth_client.judging.numbers.runs import numbers_of
from synth_client.judging.place import Box, labelled, last_boxes, sentences_from_the_end
from synth_client.judging.side_clause import stated_before

_LONGEST: Final = 20_000
# A letter that is set equal to the number, and a unit of a few words.
_BEFORE: Final = re.compile(r"[\s$€£¥=≈~]*(?:[A-Za-z]\w?(?:\([A-Za-z]\))?\s*[=:≈]\s*)?[\s$€£¥-]*")
_AFTER: Final = re.compile(
    r"[\s-]*(?:[A-Za-z°][A-Za-z°'/-]*[\s-]*){0,6}(?:\^?[23])?(?:\([A-Za-z ,'-]*\))?[\s.$]*"
)
_JOINED: Final = re.compile(r"\s*(?:[,;]\s*(?:and|or)?|and|or)\s*", re.IGNORECASE)
_WORD: Final = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")
# What may be set equal to the answer: a letter, and sums of numbers; no equation in unknowns.
_COMPUTED: Final = re.compile(
    r"(?:[A-Za-z]\w?(?:\([A-Za-z]\))?\s*=)?(?:[^A-Za-z<>≤≥≠≈,=]|\\[a-z]+|=)*"
)
_CHAIN: Final = re.compile(r"[^=<>≤≥≠,;]+=[^<>≤≥≠,;]+")
_IMPLIES: Final = re.compile(r"\\(?:Rightarrow|implies|Longrightarrow|therefore)(?![A-Za-z])")
# The value that a boxed name has beyond the box: `\boxed{x} = 5`.
_EQUALS_AFTER: Final = re.compile(r"\s?=?\s?([-\d.\\][^,;]{0,60}?)[.\s$]*$")
_BRACKETED: Final = re.compile(r"[\s$]*\(([^()]*)\)[\s$.]*")
_LIST_COMMA: Final = re.compile(r"(?<=\d), (?=\d{1,2}(?!\d)|\d{4})")
_GOES_ON: Final = re.compile(r"\^|/|!|\\[dtc]?frac|[A-Za-z\d(]")
# `$n$` and `$f(x)$` only name what is sought.
_NAME: Final = re.compile(r"\\?[A-Za-z]+(?:_\w|')?(?:\([A-Za-z]\))?|\(\*+\)")
_AROUND: Final = re.compile(r"^(?:\s|\\[,;:!])+|(?:\s|\\?[,;~]|(?<!\\)\\(?=$))+$")
# `3 = x` is `x = 3`, but `2y+3 = x` and `3 = x+y` are equations.
_TURNED: Final = re.compile(
    r"(^|[,;$({]\s{0,4}|\b(?:and|or)\s{1,4})(-?[\d.,/]{1,64})\s{0,4}=\s{0,4}([A-Za-z])"
    r"(?=\s{0,4}(?:$|[.,;$)}]|(?:and|or)\b))"
)
# Words within a formula that lead up to the answer: `\text{The answer is } 5`.
_SAID: Final = r"(?:the )?(?:final |correct )?(?:answer|result|solution)(?: is| are|:| =)+"
_LEAD: Final = re.compile(
    rf"\\text\{{\s{{0,4}}{_SAID}\s{{0,4}}\}}[\s:=~]{{0,8}}(?=\S)", re.IGNORECASE
)
_ALL_WORDS: Final = re.compile(
    rf"\\text\{{\s{{0,4}}{_SAID}\s{{0,4}}(-?[\d.,/]{{1,64}})\s{{0,4}}\}}", re.IGNORECASE
)
# Other words that lead up to it, without a number of their own: `\text{The total is } 5`.
_NAMED: Final = re.compile(
    r"[^\d=<>≤≥≠≈^_|+*/]{0,200}"
    r"(?:(?<![A-Za-z])(?:is|are|equals)(?![A-Za-z])|[A-Za-z]{2}\s?:|[Aa]nswer(?=\s?[\u2013\u2014]))"
    r"\s{0,4}\}?[\s:~$]{0,8}(?=\S)"
)
_MAX_PROSE_WORDS: Final = 6
_NO_ANSWERS: Final = frozenset({"nan", "null", "n/a", ""})


@dataclass(frozen=True, slots=True)
class Candidate:
    """An answer as written (`text`), in plain signs, and as a number or as LaTeX.

    `numbers` are those that it has where it is open which of them is the answer. `last` is the last
    part of an answer of several, which may be all that is meant. `announced` is all that "the
    answer is" announces, such as a date.
    """

    text: str
    plain: str
    quantity: Quantity | None = None
    latex: str = ""
    in_doubt: bool = False
    numbers: tuple[Quantity, ...] = ()
    last: "Candidate | None" = None
    announced: str = ""


def answer_candidates(text: str) -> list[Candidate]:
    """Return the answers of an output: one, or two if it is open which is meant; none without one.

    The answer is in the last box, else in what "the answer is" announces, else the last formula or
    number. What is announced after the last box is a second answer, or, as the final answer, the
    only one.
    """
    found = last_boxes(text)
    if found:
        after = text[found[-1].end :]
        final = next(labelled(after, by="final"), None)
        later = _announced(next(labelled(after), ""))
        if later is None or later.quantity is None:
            return [_boxed(found)]
        return [later] if final is not None else [_boxed(found), later]
    is_passed_over = False
    for announced in labelled(text):
        candidate = _announced(announced)
        if candidate is not None:
            return [replace(candidate, in_doubt=candidate.in_doubt or is_passed_over)]
        is_passed_over = True
    for sentence in sentences_from_the_end(text):
        candidates = _of_sentence(sentence)
        if candidates:
            return [replace(one, in_doubt=one.in_doubt or is_passed_over) for one in candidates]
    return []


def reference_candidate(reference: str) -> Candidate | None:
    """Return the answer that a reference gives, None if there is none.

    Where prose leaves it open which answer it gives, only the same text is the same answer.
    """
    text = reference.strip()
    if text.casefold() in _NO_ANSWERS:
        return None
    _, mark, after = text.rpartition("####")
    if mark:
        return _of_content(after)
    found = last_boxes(text)
    if found:
        return _boxed(found)
    num_words = len(_WORD.findall(plain(text[:_LONGEST])))
    if num_words > _MAX_PROSE_WORDS or ("\n" in text and num_words > 1):
        return _of_prose(text)
    chains = _chains(text)
    around = "" if not chains else text[: chains[0].start] + text[chains[-1].end :]
    if len(chains) == 1 and not re.search(r"\d", around):
        return _of_formulas(text, chains[0], first=True)
    return _of_content(text)


def _of_prose(text: str) -> Candidate:
    """Read a solution that names its answer, or ends with a formula that is marked."""
    announced = next(map(_announced, labelled(text)), None)
    chains = _chains(text)
    ends_marked = text.rstrip(".").endswith(("$", "\\]", "\\)"))
    if announced is not None and not announced.in_doubt:
        return announced
    if announced is None and chains and ends_marked:
        return _of_formulas(text, chains[-1], first=False)
    return Candidate(text, _plain(text))


def _boxed(found: list[Box]) -> Candidate:
    content = ", ".join(last_row(box.content.strip()) for box in found)
    candidate = _of_content(content, in_doubt=not found[-1].is_closed)
    if (value := _EQUALS_AFTER.match(found[-1].after)) and candidate.quantity is None:
        return replace(candidate, last=_of_content(value[1]))
    whole = of_box(replace(found[0], content=content)) if len(found) == 1 else None
    if whole is not None and candidate.quantity is not None:
        if whole.numbers[0] == candidate.quantity:
            return candidate
        return replace(_of_numbers(whole), text=candidate.text, in_doubt=candidate.in_doubt)
    if found[0].before.strip("\\$ ") or _GOES_ON.match(found[-1].after):
        return replace(candidate, in_doubt=True)
    return candidate


def _of_content(content: str, *, in_doubt: bool = False) -> Candidate:
    """Read a text that is the answer and nothing else."""
    text = _TURNED.sub(r"\1\3 = \2", _AROUND.sub("", without_bullet(content.strip())))
    text = _without_words(_LEAD.sub("", _ALL_WORDS.sub(r"\1", text)))
    readable = _readable(text)
    number = _whole_number(readable)
    last = None
    if number is None and _WORD.search(readable) and (answer := last_of(text[:_LONGEST])):
        last = _of_numbers(answer)
    return Candidate(text, _plain(text), number, latex_of(text), in_doubt, last=last)


def _without_words(text: str) -> str:
    """Return the text without the words that lead up to it, if a number or formula is left."""
    named = _NAMED.match(text)
    if named is None:
        return text
    rest = text[named.end() :]
    if rest.count("}") > rest.count("{"):
        rest = "".join(rest.rsplit("}", 1))
    is_answer = _whole_number(_readable(rest)) is not None or not _WORD.search(
        rest.replace("and", "")
    )
    return rest.strip() if is_answer and re.search(r"\d|\\", rest) else text


def _plain(text: str) -> str:
    """Return the text in a form in which equal answers look equal."""
    return _LIST_COMMA.sub(",", " ".join(_readable(text).replace("$", "").split()))


def _readable(text: str) -> str:
    return re.sub(r"(?<=\S)\.$", "", " ".join(plain(text[:_LONGEST]).split()))


def _whole_number(text: str) -> Quantity | None:
    """Return the number that the plain text is, with nothing around it but a unit and a letter."""
    bracketed = _BRACKETED.fullmatch(text)
    if bracketed is not None and "," not in bracketed[1]:
        text = bracketed[1]
    if len(text) > _LONGEST:
        return None
    text = _IMPLIES.split(text)[-1]
    before, equals, after = text.rpartition("=")
    if equals and (_COMPUTED.fullmatch(before) or _CHAIN.fullmatch(before)):
        text = after
    groups = numbers_of(text)
    if len(groups) != 1 or len(groups[0].runs) != 1:
        return None
    run = groups[0].runs[0]
    is_pair = "," in run.quantity.text and text[run.start] in "([{"
    is_alone = (
        not is_pair and _BEFORE.fullmatch(text[: run.start]) and _AFTER.fullmatch(text[run.end :])
    )
    return run.quantity if is_alone and _is_number(run.quantity) else None


def _is_number(quantity: Quantity) -> bool:
    """Return whether its value is known here; factorials and plus-minus are math-verify's."""
    is_open = quantity.is_expression or quantity.bounded or not quantity.values
    return not is_open and not any(sign in quantity.text for sign in "!±")


def _chains(text: str) -> list[Formula]:
    """Return the marked formulas; those that a comma or an "and" joins are one."""
    chains: list[Formula] = []
    for one in formulas(text):
        found = replace(one, parts=tuple(last_row(part) for part in one.parts))
        if chains and _JOINED.fullmatch(text[chains[-1].end : one.start]):
            before = chains.pop()
            parts = (*before.parts, *found.parts)
            chains.append(Formula(parts, before.start, one.end))
        else:
            chains.append(found)
    return chains


def _announced(announced: str) -> Candidate | None:
    chains = _chains(announced)
    answer = of_clause(announced)
    telling = [one for one in chains if not _NAME.fullmatch(one.content)]
    if telling or (chains and answer is None):
        return _of_formulas(announced, (telling or chains)[0], first=True)
    words = _plain(announced)
    if answer is not None:
        return replace(_of_numbers(answer), announced=words)
    return Candidate(words, words, in_doubt=True, announced=words) if words else None


def _of_sentence(sentence: str) -> list[Candidate]:
    """Return the last formula or number. A number that stands after it is a second answer, unless
    the sentence says that it is the answer: "the sum of $x$ and $y$ is 8".
    """
    answer = last_of(sentence)
    named = _chains(sentence)
    telling = [one for one in named if not _NAME.fullmatch(one.content)]
    chains = telling or ([] if answer else named)
    if not chains:
        return [] if answer is None else [_of_numbers(answer)]
    stated = stated_before(sentence, [(chain.start, chain.end) for chain in chains])
    if stated is not None:
        candidate = _of_formulas(sentence, chains[stated.index], first=True)
        return [candidate] if stated.is_sure else [candidate, _of_content(chains[-1].content)]
    candidate = _of_formulas(sentence, chains[-1], first=False)
    parts = chains[-1].parts
    unknowns = {part.partition("=")[0].strip() for part in parts if "=" in part}
    if len(unknowns) > 1 and "=" in parts[-1]:  # `n - 2 = 9`, and `n = 11`
        candidate = replace(candidate, last=_of_content(parts[-1]))
    rest = plain(sentence[chains[-1].end :])
    later = numbers_of(rest)
    if answer is None or not later or answer.written in candidate.plain:
        return [candidate]
    if is_said(rest[: later[-1].start]):
        return [_of_numbers(answer)]
    is_same = candidate.quantity is not None and candidate.quantity in answer.numbers
    return [candidate] if is_same else [candidate, _of_numbers(answer)]


def _of_formulas(text: str, formula: Formula, *, first: bool) -> Candidate:
    """Read a marked formula, with the sign, the unit or the rest of a number outside its marks."""
    chosen = _of_content(formula.content)
    number = of_content(formula.content)
    if len(formula.parts) > 1:
        return _of_parts([_of_content(part) for part in formula.parts], chosen)
    is_number = number is not None and len(number.numbers) == 1 and chosen.quantity is not None
    is_set_in_rows = "\\begin{" in text[formula.start : formula.end]
    if number is None or not is_number or is_set_in_rows:
        return chosen
    wanted = number.numbers[0].text
    groups = [
        group
        for group in numbers_of(plain(text))
        if any(wanted in run.quantity.text for run in group.runs)
    ]
    if not groups:
        return chosen
    group = groups[0] if first else groups[-1]
    numbers = tuple(run.quantity for run in group.runs)
    found = _of_numbers(NumberAnswer(numbers, written=plain(text)[group.start : group.end]))
    return replace(found, text=chosen.text) if len(numbers) == 1 else found


def _of_parts(parts: list[Candidate], whole: Candidate) -> Candidate:
    """Return the answer that several formulas are together, one number if all are that number."""
    values = {part.quantity.values if part.quantity is not None else None for part in parts}
    if len(values) == 1 and None not in values:
        return parts[-1]
    return replace(whole, quantity=None, latex="$ and $".join(part.latex for part in parts))


def _of_numbers(answer: NumberAnswer) -> Candidate:
    number = answer.numbers[0]
    text = answer.written if len(answer.numbers) > 1 or not answer.text else answer.text
    is_number = _is_number(number) or number.bounded or "!" in number.text
    if len(answer.numbers) == 1 and is_number:
        return Candidate(text, _plain(text), number, latex_of(text), answer.in_doubt)
    latex = latex_of(answer.written)
    return Candidate(text, _plain(text), None, latex, answer.in_doubt, answer.numbers)
