"""Judges answers by the rule `choice`: the letters must be those of the reference."""

import re
from dataclasses import dataclass, replace
from typing import Final

from synth_client.judging.judgement import Judgement, final_part
from synth_client.judging.number_rule import DOUBT
from synth_client.judging.numbers.plain_text import plain
from synth_client.judging.place import labelled, last_boxes, sentences_from_the_end

_LONGEST: Final = 2000
_WHOLE: Final = re.compile(r"\W*(?i:option|choice|answer|letter)?\W*([A-Ja-j])\W*")
_WITH_TEXT: Final = re.compile(
    r"[\s\"']*(?:(?i:option|choice|answer)[\s:]+)?"
    r"(?:[(\[]\s*([A-Ja-j])\s*[)\]][:.,]?|([A-J]|[b-hj])\s*(?:[):.](?!\w)|(?=\([a-z]))|([A-J])(?:\s+[-\u2013\u2014]\s|\s?=|,\s(?=[a-z]{2})))\s*(.*)",
    re.DOTALL,
)
_AND: Final = (
    r"(?:[)\].\s]{0,3}(?:[,;&/+]|\band\b|\bor\b)[,\s]{0,3}(?:and\s|or\s)?[(\[\s]{0,3}"
    r"|[)\]]\s?[(\[])"
)
_SEVERAL: Final = re.compile(
    rf"\W*(?:(?i:both|either)\W+)?([A-J])(?:{_AND}([A-J])\b)+[)\]\s.]*", re.DOTALL
)
# A last sentence that says its choice without the word "answer".
_STATED: Final = re.compile(
    r"\b(?i:option|choice|I(?:\swould|'d)?\s(?:choose|pick|select|go with))\s+[(\[]?([A-J])\b[)\]]?"
    r"|[(\[]?\b([A-J])[)\]]?\s+is\s+(?:(?:the|a|my)\s+)?(?:correct|right|best|better|answer)\b"
    r"|(?:^|[,;:])\W*(?i:so|thus|hence|therefore)\W+(?:it\W+is\W+)?[(\[]?([A-J])[)\]]?\W*$"
    r"|\b(?i:it|this)\s+is\s+(?:option\s+)?[(\[]?([B-HJ])[)\]]?\W*$"
    r"|\u9009\s*(?:\u62e9|\u9879)?\s*([A-J])\b"
)
# "All of the above (D)", or only a reference to something.
_AT_THE_END: Final = re.compile(r"\(([A-J])\)\W*$")
_TOGETHER: Final = re.compile(r"\W*([A-J]{2,10})\W*")
_LETTER: Final = re.compile(r"(?<![A-Za-z\\'])(?:([A-HJ])|[(\[]([A-Ja-j])[)\]])(?![A-Za-z'])")
_ARTICLE: Final = re.compile(
    r"A\s+(?!because|since|as\b|is\b|was\b|due|given|which|and|or|while)[a-z]"
)
# A letter with digits or the like after it: "B 12" may be the choice B, or a vitamin.
_BEGINS: Final = re.compile(r"\W*([A-J])[\s:;,]+[^A-Za-z\s]")
_DENIED: Final = re.compile(r"\b(?:not|neither|nor|isn't|cannot|can't|except|wrong|incorrect)\b")


@dataclass(frozen=True, slots=True)
class LetterAnswer:
    """The letters that an output chooses, with the text of the choice where it is given."""

    letters: tuple[str, ...]
    text: str = ""
    in_doubt: bool = False
    is_denied: bool = False

    @property
    def shown(self) -> str:
        return ", ".join(self.letters)


def judge_choice(output: str, answer: str | None) -> Judgement:
    """Judge whether the output chooses what the reference names.

    The reference is a letter A to J, alone or with the choice's text; several letters are right
    only together.
    """
    text = final_part(output)
    found = _chosen(text)
    predicted = found.shown if found is not None else None
    if answer is None:
        return Judgement(predicted, None)
    if (known := _known(answer)) is None:
        fault = f"the reference answer {answer[:80]!r} is no letter A to J"
        return Judgement(predicted, None, fault)
    if found is None:
        return Judgement(None, correct=_is_text(text, known.text))
    if found.is_denied:
        return Judgement(predicted, None, DOUBT)
    is_right = set(found.letters) == set(known.letters)
    if found.in_doubt and (is_right or set(found.letters) & set(known.letters)):
        return Judgement(predicted, None, DOUBT)
    return Judgement(predicted, is_right)


def _chosen(text: str) -> LetterAnswer | None:
    found = last_boxes(text)
    choices = [_read(box.content) for box in found]
    letters = [letter for choice in choices if choice is not None for letter in choice.letters]
    if letters:
        return LetterAnswer(tuple(dict.fromkeys(letters)), in_doubt=not found[-1].is_closed)
    is_passed_over = bool(found)
    for announced in labelled(text, by="option"):
        choice = _announced(plain(announced).strip())
        if choice is not None:
            return replace(choice, in_doubt=choice.in_doubt or is_passed_over)
        is_passed_over = True
    last = plain(next(sentences_from_the_end(text), "")).strip()
    choice = _read(last)
    if choice is None or choice.in_doubt:
        stated = _stated(last)
        if choice is None or stated is not None:
            return stated
    # The last line may be the last of the choices, written out once more.
    return replace(choice, in_doubt=choice.in_doubt or is_passed_over or bool(choice.text))


def _stated(sentence: str) -> LetterAnswer | None:
    found = list(_STATED.finditer(sentence))
    letters = tuple(dict.fromkeys("".join(filter(None, one.groups())) for one in found))
    is_denied = _DENIED.search(sentence) is not None
    if letters:
        return LetterAnswer(letters, is_denied=is_denied)
    at_the_end = _AT_THE_END.search(sentence)
    return None if at_the_end is None else LetterAnswer((at_the_end[1],), in_doubt=True)


def _read(content: str) -> LetterAnswer | None:
    """Read a text that is a choice and nothing else."""
    if len(content) > _LONGEST:
        return None
    text = plain(content).strip()
    if (whole := _WHOLE.fullmatch(text)) is not None:
        return LetterAnswer((whole[1].upper(),))
    if (several := _several(text)) is not None:
        return several
    if (named := _WITH_TEXT.fullmatch(text)) is not None:
        letter = named[1] or named[2] or named[3]
        return LetterAnswer((letter.upper(),), named[4].strip())
    begins = _BEGINS.match(text)
    return None if begins is None else LetterAnswer((begins[1],), in_doubt=True)


def _several(text: str) -> LetterAnswer | None:
    found = _SEVERAL.match(text)
    if found is not None:
        rest = text[found.end() :].strip(" .)")
        letters = re.findall(r"\b[A-J]\b", found[0])
        return LetterAnswer(tuple(dict.fromkeys(letters)), in_doubt=bool(rest))
    together = _TOGETHER.fullmatch(text)
    if together is not None and len(set(together[1])) == len(together[1]):
        return LetterAnswer(tuple(together[1]))
    return None


def _announced(text: str) -> LetterAnswer | None:
    choice = _read(text)
    if choice is not None:
        return choice
    several = _SEVERAL.match(text)
    letter = _LETTER.search(text)
    if several is not None or letter is None:
        return _several(text) if several is not None else _lower(text)
    before = text[: letter.start()]
    is_denied = _DENIED.search(before) is not None
    is_article = letter[1] == "A" and _ARTICLE.match(text, letter.start()) is not None
    joined = _SEVERAL.match(text, letter.start())
    if joined is not None:
        letters = tuple(dict.fromkeys(re.findall(r"\b[A-J]\b", joined[0])))
        return LetterAnswer(letters, is_denied=is_denied)
    chosen = (letter[1] or letter[2]).upper()
    return LetterAnswer((chosen,), in_doubt=is_article, is_denied=is_denied)


def _lower(text: str) -> LetterAnswer | None:
    found = re.match(r"\W*([b-hj])(?=[.,;:]?\s+(?:because|since|as)\b|[.,;:]\s)", text)
    return None if found is None else LetterAnswer((found[1].upper(),))


def _known(reference: str) -> LetterAnswer | None:
    choice = _read(reference)
    if choice is not None:
        return choice
    found = _chosen(reference)
    return found if found is not None and not found.in_doubt else None


def _is_text(output: str, wanted: str) -> bool:
    """Return whether the output gives the choice's text in place of its letter."""
    boxed = [box.content for box in last_boxes(output)]
    given = boxed[-1] if boxed else next(labelled(output, by="option"), "")
    return bool(wanted) and _folded(given) == _folded(wanted)


def _folded(text: str) -> str:
    return " ".join(re.findall(r"\w+", plain(text[:_LONGEST]).casefold()))
