"""Turns text into ids with the libraries `tokenizers` and `tiktoken`, in every way that is needed.

Written against `tokenizers` 0.23 (the format of `tokenizer.json`), `tiktoken` 0.14 and the
conventions of transformers' `tokenizer_config.json`.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Any, Protocol

import tiktoken
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from proxy.backends.tokens.control_text import Spellings, cut, is_plain_word

_TOKEN_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")
# Normalizers that change a text before it is cut. `Replace` stays: it writes SentencePiece's space.
_REWRITING = {"Prepend", "NFC", "NFD", "NFKC", "NFKD", "Precompiled"}
_TAG = re.compile(r"(<\|[^|<>\s]+\|>|</?think>)")


class Codec(Protocol):
    """Turns text into ids, in five ways, and back."""

    controls: Spellings
    """The control tokens; `plain` gives none of them."""

    @property
    def num_tokens(self) -> int:
        """The number of different tokens."""
        ...

    def starts(self, text: str) -> list[int]:
        """Return where a prompt's text spells control tokens; at least one place if it does."""
        ...

    def strips(self, token: str) -> tuple[bool, bool]:
        """Return whether a control token takes the white space before it, and after it."""
        ...

    def controls_among(self, ids: Iterable[int]) -> list[str]:
        """Return the spellings of the control tokens among these tokens, in order."""
        ...

    def prompt(self, text: str) -> list[int]:
        """Parse special tokens in the text, and add the tokenizer's own."""
        ...

    def markup(self, text: str) -> list[int]:
        """Parse special tokens in the text; add none."""
        ...

    def inserted(self, text: str) -> list[int]:
        """As `markup`, for markup in the middle of a text."""
        ...

    def plain(self, text: str) -> list[int]:
        """Take all of it as text, even if it looks like a special token."""
        ...

    def running(self, text: str) -> tuple[list[int], list[int]]:
        """As `plain`, and for each id the number of characters in which its token and the tokens
        before it lie.
        """
        ...

    def spelt(self, ids: Sequence[int]) -> str:
        """The text that plain ids stand for, whatever precedes them."""
        ...

    def prompt_text(self, ids: Sequence[int]) -> str:
        """The text of a prompt's ids, special tokens included. Raises KeyError for no token."""
        ...

    def highest(self) -> int:
        """Return the highest id that `plain` can give."""
        ...


class HuggingFace:
    """A `tokenizer.json`, loaded twice: unchanged, and without the parts that change a text."""

    def __init__(self, source: str, config: dict[str, Any]) -> None:
        described = json.loads(source)
        added = described.get("added_tokens") or []
        self._controls = {
            token["content"]: token for token in added if not is_plain_word(token["content"])
        }
        self._control_ids = {token["id"]: word for word, token in self._controls.items()}
        self.controls = Spellings(self._controls)
        self._normalized = Spellings([w for w, t in self._controls.items() if t.get("normalized")])
        plain = _unprefixed(described)
        # Left out they would shift the ids of others; special tokens can be left unread, below.
        plain["added_tokens"] = [
            {**token, "special": True} if token["content"] in self._controls else token
            for token in added
        ]
        self._whole = Tokenizer.from_str(source)
        self._plain = Tokenizer.from_str(json.dumps(plain))
        self._plain.encode_special_tokens = True
        for tokenizer in (self._whole, self._plain):
            tokenizer.no_truncation()
            tokenizer.no_padding()
        if "add_bos_token" in config:  # overrides the file, as in transformers
            bos = special_tokens_of(config).get("bos_token")
            known = None if bos is None else self._whole.token_to_id(bos)
            adds = bool(config["add_bos_token"]) and known is not None
            self._whole.post_processor = TemplateProcessing(
                single=[bos, "$A"] if adds else ["$A"],
                special_tokens=[(bos, known)] if adds else [],
            )

    @property
    def num_tokens(self) -> int:
        return int(self._whole.get_vocab_size())

    def prompt(self, text: str) -> list[int]:
        return _ids(self._whole, text, add_special_tokens=True)

    def markup(self, text: str) -> list[int]:
        return _ids(self._whole, text, add_special_tokens=False)

    def inserted(self, text: str) -> list[int]:
        ids: list[int] = []
        words = ""
        for part in _TAG.split(text):
            token = self._whole.token_to_id(part) if _TAG.fullmatch(part) else None
            if token is None:  # a tag without a token in this model is plain words
                words += part
            else:
                ids += [*self.plain(words), token]
                words = ""
        return ids + self.plain(words)

    def starts(self, text: str) -> list[int]:
        starts = self.controls.starts(text)
        if starts or self._whole.normalizer is None:
            return starts
        # Some tokens are found only once the text is in its normal form.
        return [0] if self._normalized.starts(self._whole.normalizer.normalize_str(text)) else []

    def strips(self, token: str) -> tuple[bool, bool]:
        found = self._controls[token]
        return bool(found.get("lstrip")), bool(found.get("rstrip"))

    def controls_among(self, ids: Iterable[int]) -> list[str]:
        return [self._control_ids[one] for one in ids if one in self._control_ids]

    def plain(self, text: str) -> list[int]:
        ids = _ids(self._plain, text, add_special_tokens=False)
        parts = self._parts(text, ids)
        if len(parts) < 2:
            return ids
        return [i for part in parts for i in _ids(self._plain, part, add_special_tokens=False)]

    def running(self, text: str) -> tuple[list[int], list[int]]:
        ids, ends = self._running(text)
        parts = self._parts(text, ids)
        if len(parts) < 2:
            return ids, ends
        ids, ends, start = [], [], 0
        for part in parts:
            of_part, ends_in_part = self._running(part)
            ids += of_part
            ends += [start + end for end in ends_in_part]
            start += len(part)
        return ids, ends

    def _running(self, text: str) -> tuple[list[int], list[int]]:
        (encoding,) = self._plain.encode_batch([text], add_special_tokens=False)
        return list(encoding.ids), [end for _, end in encoding.offsets]

    def _parts(self, text: str, ids: Sequence[int]) -> list[str]:
        """Cut a text whose ids have control tokens, which the model's own merges can make."""
        if self._control_ids.keys().isdisjoint(ids):
            return [text]
        return cut(text, self.controls.starts(text))

    def spelt(self, ids: Sequence[int]) -> str:
        return str(self._plain.decode(list(ids), skip_special_tokens=False))

    def prompt_text(self, ids: Sequence[int]) -> str:
        for token_id in ids:
            if self._whole.id_to_token(token_id) is None:  # which `decode` would leave out
                raise KeyError(token_id)
        return str(self._whole.decode(list(ids), skip_special_tokens=False))

    def highest(self) -> int:
        return max(set(self._whole.get_vocab().values()) - self._control_ids.keys())


def around_contents(
    codec: Codec, text: str, mark: str, encode: Callable[[str], list[int]]
) -> list[int]:
    """Return the ids of a rendered prompt in which `mark` spoils the contents' control tokens.

    Between the template's own control tokens, words with marks are plain text; the rest is encoded
    as `encode` and `markup` do.
    """
    pieces = re.split(f"({codec.controls.pattern})", text)
    runs = [""]
    for index, piece in enumerate(pieces):
        if index % 2 or mark not in piece:
            runs[-1] += piece
            continue
        words = piece.replace(mark, "")
        if index and codec.strips(pieces[index - 1])[1]:
            words = words.lstrip()
        if index + 1 < len(pieces) and codec.strips(pieces[index + 1])[0]:
            words = words.rstrip()
        runs += [words, ""]
    ids = encode(runs[0])
    for words, markup in zip(runs[1::2], runs[2::2], strict=True):
        ids += codec.plain(words) + (codec.markup(markup) if markup else [])
    return ids


def _ids(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool) -> list[int]:
    # `encode` holds the interpreter's lock; a batch of one releases it.
    (encoding,) = tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
    return list(encoding.ids)


class Tiktoken:
    """An encoding of `tiktoken`."""

    def __init__(self, encoding: tiktoken.Encoding) -> None:
        self._encoding = encoding
        words = encoding.special_tokens_set
        self._control_ids = {encoding.encode_single_token(word): word for word in words}
        self.controls = Spellings(words)

    @property
    def num_tokens(self) -> int:
        return self._encoding.n_vocab

    def starts(self, text: str) -> list[int]:
        return self.controls.starts(text)

    def strips(self, token: str) -> tuple[bool, bool]:
        del token
        return False, False

    def controls_among(self, ids: Iterable[int]) -> list[str]:
        return [self._control_ids[one] for one in ids if one in self._control_ids]

    def prompt(self, text: str) -> list[int]:
        return self.markup(text)

    def markup(self, text: str) -> list[int]:
        return self._encoding.encode(text, allowed_special="all")

    def inserted(self, text: str) -> list[int]:
        return self.markup(text)

    def plain(self, text: str) -> list[int]:
        return self._encoding.encode_ordinary(text)

    def running(self, text: str) -> tuple[list[int], list[int]]:
        ids = self.plain(text)
        # A character is entered by its first byte.
        entered = [0, *accumulate(byte & 0xC0 != 0x80 for byte in text.encode())]
        sizes = (len(self._encoding.decode_single_token_bytes(token)) for token in ids)
        return ids, [entered[end] for end in accumulate(sizes)]

    def spelt(self, ids: Sequence[int]) -> str:
        return self._encoding.decode(list(ids))

    def prompt_text(self, ids: Sequence[int]) -> str:
        for token_id in ids:
            self._encoding.decode_single_token_bytes(token_id)
        return self._encoding.decode(list(ids))

    def highest(self) -> int:
        return max(map(self._encoding.encode_single_token, self._encoding.token_byte_values()))


def _unprefixed(tokenizer: dict[str, Any]) -> dict[str, Any]:
    r"""The same vocabulary for text in the middle of another text.

    Llama 2's tokenizer and others of the SentencePiece kind put a space before every text and
    remove it when they decode; a step's tokens are appended to other tokens and need neither.
    """
    normalizer = _without(tokenizer.get("normalizer"), "normalizers", _REWRITING)
    decoder = _without(tokenizer.get("decoder"), "decoders", {"Strip"})
    changed = {**tokenizer, "normalizer": normalizer, "decoder": decoder, "post_processor": None}
    for key, parts in (("pre_tokenizer", "pretokenizers"), ("decoder", "decoders")):
        for part in _parts(changed.get(key), parts):
            if "prepend_scheme" in part:
                part["prepend_scheme"] = "never"
            if "add_prefix_space" in part:
                part["add_prefix_space"] = False
    return changed


def _parts(component: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """A sequence's members, or the one component."""
    if component is None:
        return []
    return list(component[key]) if component["type"] == "Sequence" else [component]


def _without(component: dict[str, Any] | None, key: str, types: set[str]) -> dict[str, Any] | None:
    kept = [part for part in _parts(component, key) if part["type"] not in types]
    return {"type": "Sequence", key: kept} if kept else None


def special_tokens_of(config: dict[str, Any]) -> dict[str, str]:
    """`bos_token` and so on, each written as a string or as an object with `content`."""
    tokens: dict[str, str] = {}
    for role in _TOKEN_ROLES:
        value = config.get(role)
        if value is not None:
            tokens[role] = str(value["content"] if isinstance(value, dict) else value)
    return tokens
