"""Checks what becomes of an upstream of kind sglang in the configuration."""

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

from proxy.backends.base import Question, Reader
from proxy.backends.servers.sglang import SGLang
from proxy.core.thinking import Reasoning
from proxy.engine.upstream import Upstream
from proxy.errors import ConfigError
from proxy.wiring.models import open_service
from tests.support.paths import package_file
from tests.support.replay import CALL, GREEDY, Replay, Reply, Seen, json_reply, stream_reply
from tests.support.servers import sglang
from tests.support.servers.configured import one_upstream

LIMITS = ["/v1/models", "/server_info"]


@asynccontextmanager
async def configured(up: Replay, folder: Path, reasoning: str = "none") -> AsyncIterator[Upstream]:
    """The scripted server as an upstream of kind sglang that runs one request at once."""
    if reasoning == "none":
        up.on(
            "POST", sglang.TOKENIZE, sglang.RECORDED.answering("tokenize_follower", "encode_steps")
        )
    up.on("GET", "/v1/models", json_reply(sglang.RECORDED.body("models")))
    config = one_upstream(up, folder, "sglang", max_concurrent=1, reasoning=reasoning)
    async with open_service(config) as service:
        (upstream,) = service.upstreams()
        yield upstream


async def test_an_upstream_of_kind_sglang_is_served_by_this_backend(
    up: Replay, tmp_path: Path
) -> None:
    async with configured(up, tmp_path) as upstream:
        assert isinstance(upstream.reader, SGLang)
        asked = [sglang.TOKENIZE, "/v1/models", sglang.GENERATE]
        assert [seen.path for seen in up.seen] == [*asked, *LIMITS]
        assert upstream.reasoning == Reasoning("none")
        assert upstream.markup is upstream.reader


@pytest.mark.parametrize(
    ("reasoning", "prompt", "expected", "num_rendered"),
    [
        ("auto", "{}<A><think>\n", Reasoning("think", opened=True), 1),
        ("auto", "{}<A>", Reasoning("none"), 2),
        ("auto", "{}<|start|>assistant", Reasoning("harmony"), 1),
        ("harmony", "", Reasoning("harmony"), 0),
        ("think", "{}<A>", Reasoning("think"), 2),
        ("think", "{}<A><think>\n", Reasoning("think", opened=True), 1),
    ],
)
async def test_how_its_model_thinks_is_found_out_once(
    up: Replay,
    tmp_path: Path,
    reasoning: str,
    prompt: str,
    expected: Reasoning,
    num_rendered: int,
) -> None:
    def tokens(seen: Seen) -> Reply:
        if "messages" not in seen.body:
            return sglang.RECORDED.answering("tokenize_follower")(seen)
        return json_reply({"tokens": [len(seen.body["messages"]), 5]})

    def text(seen: Seen) -> Reply:
        assert seen.body["skip_special_tokens"] is False
        told = "Is it raining?" + ("" if seen.body["tokens"][0] == 1 else "The ground is dry")
        return json_reply({"text": prompt.format(told)})

    up.on("POST", sglang.TOKENIZE, tokens)
    up.on("POST", "/v1/detokenize", text)
    async with configured(up, tmp_path, reasoning) as upstream:
        asked = [sglang.TOKENIZE, "/v1/models", sglang.GENERATE]
        asked += [sglang.TOKENIZE, "/v1/detokenize"] * num_rendered
        assert [seen.path for seen in up.seen] == [*asked, *LIMITS]
        assert upstream.reasoning == expected


async def test_a_tokenizer_of_our_own_reads_where_the_configuration_names_one(
    up: Replay, tmp_path: Path
) -> None:
    spaced = {"tokens": [[29871, 13, 29874], [263]]}  # as this server would refuse
    up.on("POST", sglang.TOKENIZE, json_reply(spaced))
    up.on("GET", "/v1/models", json_reply(sglang.RECORDED.body("models")))
    known = {letter: index for index, letter in enumerate("a\nbcdefghijklmnopqrstuvwxyz")}
    Tokenizer(models.BPE(known, [])).save(str(tmp_path / "tokenizer.json"))

    async def reader(tokenizer: str) -> Reader:
        config = one_upstream(up, tmp_path, "sglang", tokenizer=tokenizer)
        async with open_service(config) as service:
            (only,) = service.upstreams()
            return only.reader

    own = await reader(str(tmp_path))
    num_asked = len(up.bodies(sglang.TOKENIZE))
    assert (await own.render(Question(prompt="aa"), CALL)).token_ids == (0, 0)
    assert len(up.bodies(sglang.TOKENIZE)) == num_asked
    with pytest.raises(ConfigError, match=r"^upstreams\.only\.tokenizer: 'no/such/one' is neither"):
        await reader("no/such/one")


async def test_a_tiktoken_encoding_needs_a_template_to_write_prompts(
    up: Replay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = package_file("litellm", "litellm_core_utils", "tokenizers")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(cache))
    config = one_upstream(up, tmp_path, "sglang", tokenizer="tiktoken:cl100k_base")
    with pytest.raises(ConfigError, match=r"upstreams\.only\.tokenizer: .* set chat_template"):
        async with open_service(config):
            pass


async def test_an_upstream_has_connections_for_a_write_and_for_what_runs_beside_it(
    up: Replay, tmp_path: Path
) -> None:
    held = stream_reply(sglang.WRITING.begun, hold=True)
    scored = json_reply(sglang.RECORDED.body("score_two_steps"))
    up.on("POST", sglang.GENERATE, json_reply(None, 404), held, scored)
    async with configured(up, tmp_path) as upstream:
        writing = upstream.writer.write(sglang.ASKED.context, GREEDY, 8, CALL)
        async with aclosing(writing):
            await anext(writing)
            await upstream.reader.encode(["7+5 = 12.\n\n", "", "So 🚀 é 12", "42"], CALL)
            context = sglang.scored_context(sglang.NUM_STEP_1, sglang.NUM_STEP_2)
            (scorer,) = upstream.scorers
            await scorer.score(context, 2, 3, CALL, entropy_known=False)
            await upstream.writer.check()
