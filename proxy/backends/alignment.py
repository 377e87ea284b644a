"""Which tokens stand for a step, so that every token counts once and none shifts at a seam."""

# Stands for "more text follows" while a step is tokenised.
FOLLOWED_BY = "a"


def as_in_running_text(text: str) -> str:
    r"""What to tokenise so that a step gets the ids it has when more text follows.

    Tokenizers of the GPT-2 kind cut trailing white space differently at the end of a text: alone,
    `".\n\n"` is `[".", "\n\n"]`, but before a word it is `[".", "\n", "\n"]`, which is what
    the models write. A step that ends in white space is therefore tokenised with a letter after
    it, and `without_follower` takes the letter's token away again.
    """
    return text + FOLLOWED_BY if text[-1:].isspace() else text


def without_follower(text: str, ids: list[int], follower: int) -> tuple[int, ...] | None:
    """The ids of `text` from those of `as_in_running_text(text)`; `follower` is the letter's id.

    None where the letter did not come out as a token of its own.
    """
    if not text[-1:].isspace():
        return tuple(ids)
    return tuple(ids[:-1]) if ids and ids[-1] == follower else None
