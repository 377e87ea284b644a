"""Lists the pieces of text that the property tests write, and the ways of ending a step."""

from hypothesis import strategies as st

from proxy.core.params import Delimiters
from tests.property.sequential import Ends

PIECES = [
    "a",
    "bc",
    "é",
    " ",
    "",
    ".",
    "\n",
    ".\n",
    "\n\n",
    ".\n\n",
    "x.\n\ny",
    ".\n\n.\n\n",
    "\n\n\n",
    "```",
    "\n```\n",
    "\n~~~ `",
]
ENDS = st.sampled_from(
    [
        *(Ends((text,)) for text in (".\n\n", "\n\n", "\n", "bc", "aa")),
        Ends(("\n\n", ".")),
        Ends(("aa", "bc", "\n\n\n")),
        Ends((".\n", ".\n\n")),
        Ends(("\n\n",), keep_code=True),
        Ends(("\n", "bc", "a\n"), keep_code=True),
        Ends(("`", "."), keep_code=True),
    ]
)


def delimiter_of(ends: Ends) -> str | Delimiters:
    """The parameter: a single text that cuts code, too, is given as a text."""
    if len(ends.texts) == 1 and not ends.keep_code:
        return ends.texts[0]
    return Delimiters(any=ends.texts, keep_code=ends.keep_code)
