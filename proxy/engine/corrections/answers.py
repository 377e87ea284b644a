"""Says what reads the answers of corrections, and which requests may ask for several of them."""

from collections.abc import Container, Sequence
from typing import Protocol

from proxy.core.types import FoundAnswer
from proxy.errors import RequestError
from proxy.options import Options


class AnswerReader(Protocol):
    """Reads the answers of texts, and compares them."""

    async def start(self) -> None:
        """Return once it can read. Raises a `MotabError` if it never can."""
        ...

    async def read(self, texts: Sequence[str], reference: str | None) -> tuple[FoundAnswer, ...]:
        """Return the answer of each text, compared with the reference, if there is one. Where none
        is known to be right, they are compared with each other, too.
        """
        ...


async def check_corrections(
    options: Options, asked: Container[str], reader: AnswerReader | None
) -> None:
    """Raise `RequestError` if several corrections cannot be had.

    Where the method is another one, `choose` is refused only if it is in `asked`: a request may
    choose another method than its model's `params` are for.
    """
    if options.method != "motab" and options.choose != "auto" and "choose" in asked:
        message = f"choose must be 'auto' with method '{options.method}', not '{options.choose}'"
        raise RequestError(message, param="motab.choose")
    if options.corrections == 1:
        return
    if reader is None:
        message = (
            f"corrections must be 1 here, not {options.corrections}: this server reads no answers,"
            " so it cannot choose among corrections; `motab serve` can"
        )
        raise RequestError(message, param="motab.corrections")
    await reader.start()


def check_reference(options: Options, num_questions: int) -> None:
    """Raise `RequestError` if the reference has no use, or a reference is missing."""
    chooses = options.corrections > 1
    fault = None
    if options.reference is None:
        if chooses and options.choose == "verified":
            fault = "choose 'verified' needs it: send the right answer, or leave choose out"
    elif not chooses:
        fault = "it has no use: it chooses among several corrections of method 'motab'"
    elif options.choose == "majority":
        fault = "it has no use where choose is 'majority'; leave out one of the two"
    elif not options.reference.strip():
        fault = "it is blank; leave it out where the answer is not known"
    elif num_questions > 1:
        fault = f"it is the answer to one question, and these are {num_questions}"
    if fault is not None:
        raise RequestError(f"reference: {fault}", param="motab.reference")
