"""Reads the numbers of a refusal: the tokens of the window, of the prompt, and of an answer."""

import re

_NAME = (
    r"(?:context|model|conversation|max(?:imum)? prompt)['s]*(?: token)?[ _-]*"
    r"(?:length|window|size|limit)"
)
# The servers' sentences, as tests/unit/backends/test_refusals.py quotes them.
_WINDOW = (
    rf"{_NAME}(?: exceeded)?(?: (?:is|of|only|to)\b)*[\s:=(]*(\d+)(?!\d| \+)",
    r"max_(?:model_len|total_tokens)=(\d+)",
    r"(\d+) max(?:imum)? context length",
    r"must be <= (\d+)",
    r"\d+ \+ \d+ > (\d+)",
    r"> (\d+) maximum\b",
    r"maximum allowed length \((\d+)",
    r"(?:while|configured) limit (?:is|of) (\d+)",
    r"\btokens\b.{0,60}\b(?:max(?:imum)?|limit)(?: is| of|:)? (\d+)",
    r"exceed\w* the max(?:imum)? of (\d+) tokens",
    r"tokens?\b.{0,20}\W\d+ > (\d+)",
)
_PROMPT = (
    r"(\d+) (?:tokens )?(?:in|from|of) (?:the|your) (?:input|messages|prompt)\b",
    # "At least" is where vLLM stopped to count.
    r"(?<!at least )\b(\d+) `?inputs?`? tokens\b",
    r"(?:input|prompt|request) \((\d+) tokens\)",
    r"(\d+) \+ \d+ > \d+",
    r"too many (?:\w+ )?tokens\W{1,3}(\d+)",
    r"\bnumber of tokens \((\d+)\) (?:is|exceed)",
    r"(?:prompt|input|request) has (\d+) tokens",
)
_ANSWER = (
    r"`?(?:max(?:_completion|_output|_new)?_tokens|max_?output_?tokens|max(?:imum)? tokens"
    r"|(?:output|completion) tokens)\b`?"
)
_LOWER = (
    r"(?:at most|less than or equal to|<=|cannot exceed|exceeds? the model limit of"
    r"|exceeds model limit of|\blimit (?:is|of)|between 1 and"
    r"|(?:the|a) max(?:imum)?(?: output tokens)?(?: is| of)?) [`(]?(\d+)"
)
_OUTPUT = (
    r"at most (\d+) (?:completion|output|new|generated)",
    r"> (\d+),? which is the maximum allowed number of output tokens",
    rf"{_ANSWER}.{{0,80}}\[\d+, ?(\d+)\]",
    rf"{_ANSWER}.{{0,80}}?{_LOWER}",
    rf"max(?:imum)? value (?:of|for) {_ANSWER} is (\d+)",
    r"maximum output length is (\d+)",
)
_OUTPUT_END = (rf"{_ANSWER}.{{0,80}}\(inclusive\) to (\d+) \(exclusive\)",)


def window_tokens(words: str) -> int | None:
    """Return the size of the window that a server's words name; None if they name none."""
    return _number(_WINDOW, words)


def prompt_tokens(words: str) -> int | None:
    """Return the number of the prompt's tokens that a server's words name."""
    return _number(_PROMPT, words)


def most_output(words: str) -> int | None:
    """Return the most tokens of an answer, if a server's words say that more were asked for."""
    end = _number(_OUTPUT_END, words)
    return _number(_OUTPUT, words) if end is None else end - 1


def _number(patterns: tuple[str, ...], words: str) -> int | None:
    """The number that the first of the patterns finds."""
    for pattern in patterns:
        if (found := re.search(pattern, words, re.IGNORECASE)) is not None:
            return int(found[1])
    return None
