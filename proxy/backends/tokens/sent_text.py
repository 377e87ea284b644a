"""Refuses text in which a server that is sent text would find control tokens.

Such a server reads a control token wherever a text spells it, whoever wrote the text: a student's
step could end the teacher's turn there, and the next words would be scored as another turn's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from proxy.backends.base import Segment
from proxy.backends.tokens.alignment import CONTROL
from proxy.backends.tokens.codec import Codec
from proxy.backends.tokens.control_text import without_tags
from proxy.errors import RequestError


@dataclass(frozen=True, slots=True)
class SentText:
    """Checks the text that an upstream's server is sent."""

    upstream: str
    codec: Codec
    families: bool = False
    """Whether the control tokens of known families count, too: the server's model may have another
    tokenizer than `codec`."""

    def check_steps(self, steps: Sequence[Segment], following: str = "") -> None:
        """Raise `RequestError` unless the steps' text spells the control tokens of their ids and no
        others. `following` is the text after them.
        """
        text = "".join(step.text for step in steps) + following
        if not self.codec.starts(text):
            return
        spelt = self.codec.controls.words(text)
        own = self.codec.controls_among(chain.from_iterable(step.token_ids for step in steps))
        if not spelt or spelt != own:
            raise self._refusal()

    def check(self, text: str) -> None:
        """Raise `RequestError` if the text spells a control token, other than a thought's tags."""
        places = self.codec.starts(text)
        if self.families:
            places += [found.start() for found in CONTROL.finditer(text)]
        if without_tags(text, places):
            raise self._refusal()

    def _refusal(self) -> RequestError:
        message = (
            f"a text for upstream '{self.upstream}' spells a control token, and its server would "
            "read it as that token, because it is sent text: kinds that send tokens can serve it"
        )
        return RequestError(message)
