"""Tests servers whose tokenizer brings texts into a normal form of Unicode before it cuts them."""

from unicodedata import normalize

import pytest

from proxy.backends.tokens.normal_form import NormalForm
from proxy.errors import TokenizerFailed
from tests.support.replay import CALL, Replay, Reply, Seen, json_reply
from tests.support.servers import sglang, vllm


def tokenised(form: NormalForm, seen: Seen) -> Reply:
    asked = seen.body["prompt"]
    texts = [asked] if isinstance(asked, str) else asked
    rows = [[ord(character) for character in normalize(form, text)] for text in texts]
    return json_reply({"tokens": rows[0] if isinstance(asked, str) else rows})


SERVERS = {"vllm": (vllm.backend, "/tokenize"), "sglang": (sglang.backend, "/v1/tokenize")}


@pytest.mark.parametrize("kind", SERVERS)
async def test_a_step_gets_the_tokens_of_exactly_its_text(up: Replay, kind: str) -> None:
    backend, route = SERVERS[kind]
    up.on("POST", route, lambda seen: tokenised("NFC", seen))
    text = "cafe\u0301 and Ko\u0308ln: 7"
    (segment,) = await backend(up).encode([text], CALL)
    assert segment.text == text
    assert "".join(map(chr, segment.token_ids)) == text


@pytest.mark.parametrize("kind", SERVERS)
async def test_a_text_that_the_tokenizer_cannot_leave_as_it_is_is_refused(
    up: Replay, kind: str
) -> None:
    backend, route = SERVERS[kind]
    up.on("POST", route, lambda seen: tokenised("NFKC", seen))
    with pytest.raises(TokenizerFailed, match=r"rewrites U\+00B2 \(NFKC\)"):
        await backend(up).encode(["x² = 4"], CALL)


@pytest.mark.parametrize("kind", SERVERS)
async def test_other_tokenizers_are_asked_for_whole_texts_and_about_their_form_once(
    up: Replay, kind: str
) -> None:
    backend, route = SERVERS[kind]
    reader = backend(up)
    up.on("POST", route, lambda seen: json_reply(tokens_as_they_are(seen)))
    await reader.encode(["plain"], CALL)
    num_plain = len(up.bodies(route))
    for _ in range(2):
        (segment,) = await reader.encode(["x² cafe\u0301"], CALL)
        assert "".join(map(chr, segment.token_ids)) == "x² cafe\u0301"
    asked = [body["prompt"] for body in up.bodies(route)[num_plain:]]
    flat = [text for one in asked for text in ([one] if isinstance(one, str) else one)]
    assert flat.count("x² cafe\u0301") == 2
    assert flat.count("fi") == 1


def tokens_as_they_are(seen: Seen) -> dict[str, object]:
    asked = seen.body["prompt"]
    if isinstance(asked, str):
        return {"tokens": list(map(ord, asked))}
    return {"tokens": [list(map(ord, text)) for text in asked]}
