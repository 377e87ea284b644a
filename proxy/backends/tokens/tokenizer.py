"""Loads tokenizers into this process: a Hugging Face name, a local folder, or `tiktoken:NAME`."""

import json
from asyncio import to_thread
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate, chain, pairwise
from pathlib import Path
from typing import Any

import tiktoken

from proxy.backends.base import Call, Message, Question, Segment
from proxy.backends.tokens.alignment import FOLLOWED_BY, as_in_running_text, without_follower
from proxy.backends.tokens.chat_template import ChatTemplate, rendered_here
from proxy.backends.tokens.codec import (
    Codec,
    HuggingFace,
    Tiktoken,
    around_contents,
    special_tokens_of,
)
from proxy.backends.tokens.control_text import marked, without_tags
from proxy.errors import ConfigError, RequestError, TokenizerFailed

TIKTOKEN = "tiktoken:"
_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
# Encoding this many characters takes some 4 ms (measured: 1 us a character, and 0.2 ms for the way
# to a thread and back); longer texts go to a thread.
_LONG = 4096


class LocalReader:
    """Turns text into a model's tokens, in this process.

    The model's own template writes its special tokens itself; a template from the configuration
    leaves them to the tokenizer (see `ChatTemplate`).
    """

    def __init__(
        self,
        source: str,
        codec: Codec,
        *,
        own: ChatTemplate | None,
        configured: ChatTemplate | None,
        counts: bool,
    ) -> None:
        self._source = source
        self._codec = codec
        self._own = own
        self._configured = configured
        self._counts = counts
        self.template_kwargs: Mapping[str, Any] = {}
        """Variables of the chat template, which a question may replace."""
        self.sends_text = False
        """Whether the server gets the prompt as text, in which it finds control tokens itself."""
        (self._follower,) = codec.plain(FOLLOWED_BY)[-1:]

    @property
    def codec(self) -> Codec:
        """Return what makes the tokens."""
        return self._codec

    @property
    def has_template(self) -> bool:
        """Return whether messages are rendered as the model reads them, not only counted."""
        return self._own is not None or self._configured is not None

    async def require_within(self, num_tokens: int) -> None:
        """Raise `ConfigError` if text can have ids that a model of that many tokens lacks.

        Control tokens do not count: some tokenizers list those of other models of their family.
        """
        if (highest := await to_thread(self._codec.highest)) >= num_tokens:
            message = (
                f"tokenizer: '{self._source}' gives ids up to {highest}, but the server's model"
                f" has {num_tokens} tokens: name the tokenizer of the model that is served"
            )
            raise ConfigError(message)

    async def render(self, question: Question, call: Call) -> Segment:
        del call
        question = question.under(self.template_kwargs)
        spoilt, mark = marked(question, self._codec.starts)
        begun = question.begun
        if self.sends_text and (mark or without_tags(begun, self._codec.starts(begun))):
            message = (
                f"a message spells a control token of the tokenizer '{self._source}', and this "
                "upstream's server would read it as that token, because it is sent text"
            )
            raise RequestError(message, param="messages")
        if (text := await rendered_here(spoilt, self._configured)) is not None:
            encode = self._codec.prompt
        elif (text := await rendered_here(spoilt, self._own)) is not None:
            encode = self._codec.markup
        elif self._counts:
            text, encode, mark = _transcript(question.messages), self._codec.plain, ""
        else:
            message = (
                f"the tokenizer '{self._source}' has no chat template: send a prompt, or set the "
                "upstream's chat_template"
            )
            raise RequestError(message, param="messages")

        def encoded() -> list[int]:
            return around_contents(self._codec, text, mark, encode) if mark else encode(text)

        ids = encoded() if len(text) < _LONG else await to_thread(encoded)
        return Segment(text.replace(mark, "") if mark else text, tuple(ids))

    async def prompt_text(self, rendered: Segment, call: Call) -> str:
        del call
        try:
            return rendered.text or await to_thread(self._codec.prompt_text, rendered.token_ids)
        except KeyError as error:
            message = f"the tokenizer '{self._source}' has no token {error.args[0]}"
            raise RequestError(message, param="prompt") from error

    async def markup(self, text: str, call: Call) -> Segment:
        del call
        return Segment(text, tuple(self._codec.inserted(text)))

    async def encode(self, texts: Sequence[str], call: Call) -> list[Segment]:
        """See `Reader`. Raises `TokenizerFailed` if the ids would stand for a different text."""
        del call
        if sum(map(len, texts)) < _LONG:
            return [self._encode(text) for text in texts]
        return await to_thread(lambda: [self._encode(text) for text in texts])

    async def encode_running(
        self, texts: Sequence[Sequence[str]], call: Call
    ) -> list[list[Segment]]:
        """See `Reader`. Raises `TokenizerFailed` if the ids would stand for a different text."""
        del call
        if sum(map(len, chain.from_iterable(texts))) < _LONG:
            return [self._encode_running(parts) for parts in texts]
        return await to_thread(lambda: [self._encode_running(parts) for parts in texts])

    def _encode(self, text: str) -> Segment:
        return Segment(text, self._exact(text, self._codec.plain(as_in_running_text(text))))

    def _encode_running(self, parts: Sequence[str]) -> list[Segment]:
        text = "".join(parts)
        ids, ends = self._codec.running(as_in_running_text(text))
        own = self._exact(text, ids)
        bounds = [bisect_right(ends, end, hi=len(own)) for end in accumulate(map(len, parts))]
        return [
            Segment(part, own[start:end])
            for part, (start, end) in zip(parts, pairwise([0, *bounds]), strict=True)
        ]

    def _exact(self, text: str, ids: list[int]) -> tuple[int, ...]:
        """The ids of exactly `text`, from those of `as_in_running_text(text)`."""
        try:
            own = without_follower(text, ids, self._follower)
        except ValueError as error:
            raise TokenizerFailed(f"tokenizer '{self._source}': {error}") from error
        if self._codec.spelt(own) != text:
            message = f"its tokens of {text[-40:]!r} spell another text"
            raise TokenizerFailed(f"tokenizer '{self._source}': {message}")
        return own


def load_tokenizer(
    source: str, chat_template: ChatTemplate | None, *, counts: bool = False
) -> LocalReader:
    """Load a tokenizer; a Hugging Face name is downloaded here, unless it is in the cache.

    With `counts`, messages that no template can render are tokenised as a transcript, for servers
    that take messages and whose tokens are only counted; `tiktoken` encodings have no template, so
    they always do that. Raises `ConfigError` with one line that says what to do.
    """
    if source.startswith(TIKTOKEN):
        codec = Tiktoken(_encoding(source.removeprefix(TIKTOKEN)))
        return LocalReader(source, codec, own=None, configured=chat_template, counts=True)
    folder = Path(source).expanduser()
    if not folder.is_dir():
        folder = _downloaded(source)
    if not (folder / "tokenizer.json").is_file():
        message = (
            f"tokenizer: '{source}' has no tokenizer.json: write one with transformers' "
            "AutoTokenizer.from_pretrained(...).save_pretrained(FOLDER) and name that folder"
        )
        raise ConfigError(message)
    try:
        config = _config(folder)
        codec_of_folder = HuggingFace((folder / "tokenizer.json").read_text("utf-8"), config)
    except Exception as error:  # `tokenizers` raises bare Exceptions
        message = f"tokenizer: '{source}' cannot be read: {' '.join(str(error).split())}"
        raise ConfigError(message) from error
    own = None if chat_template is not None else _own_template(source, folder, config)
    return LocalReader(source, codec_of_folder, own=own, configured=chat_template, counts=counts)


def _downloaded(name: str) -> Path:
    # Only this needs them, and every worker's start would wait a tenth of a second for them.
    from huggingface_hub import snapshot_download  # noqa: PLC0415
    from huggingface_hub.errors import (  # noqa: PLC0415
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(snapshot_download(name, allow_patterns=list(_FILES)))
    except GatedRepoError as error:
        message = f"tokenizer: '{name}' needs consent at huggingface.co and a token in HF_TOKEN"
        raise ConfigError(message) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        message = (
            f"tokenizer: '{name}' is neither a folder here nor a Hugging Face name (a private one "
            "needs a token in HF_TOKEN)"
        )
        raise ConfigError(message) from error
    except (LocalEntryNotFoundError, OSError) as error:
        message = (
            f"tokenizer: '{name}' is neither a folder nor in the Hugging Face cache, and could not "
            f"be downloaded: run 'hf download {name} {' '.join(_FILES)}' where there is a network, "
            "or name a folder that holds these files"
        )
        raise ConfigError(message) from error


def _encoding(name: str) -> tiktoken.Encoding:
    try:
        return tiktoken.get_encoding(name)
    except ValueError as error:
        known = ", ".join(tiktoken.list_encoding_names())
        message = f"tokenizer: '{TIKTOKEN}{name}' is unknown; tiktoken knows {known}"
        raise ConfigError(message) from error
    except OSError as error:  # includes requests' errors
        message = (
            f"tokenizer: '{TIKTOKEN}{name}' could not be downloaded: start once where there is a "
            "network, with TIKTOKEN_CACHE_DIR naming a folder that is kept"
        )
        raise ConfigError(message) from error


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    return dict(json.loads(path.read_text("utf-8"))) if path.is_file() else {}


def _own_template(source: str, folder: Path, config: dict[str, Any]) -> ChatTemplate | None:
    """The model's own chat template, from its file or from `tokenizer_config.json`."""
    path = folder / "chat_template.jinja"
    found = path.read_text("utf-8") if path.is_file() else config.get("chat_template")
    if isinstance(found, list):
        named = {entry["name"]: entry["template"] for entry in found}
        found = named.get("default")
    if found is None:
        return None
    try:
        return ChatTemplate(found, special_tokens_of(config))
    except ConfigError as error:
        raise ConfigError(f"tokenizer: '{source}': its {error}") from error


def _transcript(messages: tuple[Message, ...]) -> str:
    return "".join(f"{message.role}\n{message.content}\n" for message in messages)
