"""Lists the pieces of text that the property tests write."""

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
]
