"""Speaks SGLang's own API: `/generate` with token-id prompts, and `/v1/tokenize`."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from operator import itemgetter
from typing import Any

import orjson

from proxy.backends.base import GREEDY, Call, Context, Decoded, Draft, Sampling, ScoredToken, Scores
from proxy.backends.limits import ModelLimits
from proxy.backends.servers.model_list import asked, count_in, require_model
from proxy.backends.servers.sampling_fields import sglang_sampling
from proxy.backends.servers.server_reader import Cuts, ServerReader
from proxy.backends.servers.vocabulary import UNKNOWN_BIAS, Vocabulary, asked_vocabulary
from proxy.backends.token_ids import TokenIds
from proxy.backends.tokens.alignment import (
    FOLLOWED_BY,
    REPLACEMENT,
    as_in_running_text,
    decoded,
    scored_tokens,
)
from proxy.backends.tokens.chat_template import ChatTemplate
from proxy.backends.tokens.logprobs import PieceLogprobs, all_finite, complete, finite
from proxy.backends.tokens.spelling import Spelling, Token
from proxy.backends.tokens.thin_json import RowLayout
from proxy.backends.tokens.wire_values import end_of, error_in, text_of, whole_text
from proxy.backends.transport.http import DONE, UpstreamClient
from proxy.backends.transport.refusals import refusal_of, status_in
from proxy.core.scoring import entropy, oracle_value
from proxy.core.types import FinishReason, Scoring, StepScore
from proxy.errors import MotabError, RouterTokenises, UpstreamRefused

# SGLang raises -inf, which JSON does not have, to the lowest number of its float type.
_LOWEST = -1e30
# The type of sglang-router's error where it could not load the model's tokenizer.
_NO_TOKENIZER = "tokenizer_not_found"
_TOPS = RowLayout(b"input_top_logprobs", b"[[", b"]]")
# The columns of a row of log-probabilities.
_LOGPROB, _ID = itemgetter(0), itemgetter(1)


class SGLang(ServerReader):
    """Student or teacher on SGLang. One scoring call gives V, H and the next state's H."""

    scoring: Scoring = "prompt_logprobs"
    recomputes = False
    _route = "/v1/tokenize"

    def __init__(
        self,
        client: UpstreamClient,
        model: str,
        chat_template: ChatTemplate | None,
        follower: int | None,
    ) -> None:
        super().__init__(client, model, chat_template, follower)
        self._strings: dict[int, str] = {}
        """The strings of tokens, each asked for once."""

    @classmethod
    async def _cuts(cls, client: UpstreamClient, model: str) -> Cuts:
        prompts = [as_in_running_text("\n"), FOLLOWED_BY]
        body = {"model": model, "prompt": prompts, "add_special_tokens": False}
        reply = await cls._tokenise(client, body, Call("connect"))
        with client.expecting(cls._route):
            running, alone = reply["tokens"]
            follower, first = int(running[-1]), [int(token) for token in alone]
            return Cuts(follower, adds_space=first != [follower])

    @classmethod
    async def _tokenise(cls, client: UpstreamClient, body: Mapping[str, Any], call: Call) -> Any:  # noqa: ANN401
        try:
            reply = await client.post(cls._route, dict(body), call)
        except UpstreamRefused as error:
            if _NO_TOKENIZER not in str(error):
                raise
            raise RouterTokenises(client.upstream) from error
        # SGLang's own answer never has this field. The router's ids lack a token at the beginning
        # where the model needs one.
        if isinstance(reply, dict) and "char_count" in reply:
            raise RouterTokenises(client.upstream)
        return reply

    async def check(self) -> None:
        # For an adapter, /generate would answer with the base model.
        await require_model(self._client, self._model, no_adapters=True)

    async def limits(self) -> ModelLimits:
        limits = await super().limits()
        info = await asked(self._client, "/server_info")
        refused = count_in(info, "max_req_input_len") if isinstance(info, dict) else None
        # A prompt of that many tokens is refused already.
        return limits if refused is None else limits.lower(ModelLimits(input_tokens=refused - 1))

    async def learn_vocabulary(self) -> Vocabulary:
        sampled = {"max_new_tokens": 1, "logit_bias": UNKNOWN_BIAS}
        body = {"input_ids": [0], "sampling_params": sampled}
        self.vocabulary = await asked_vocabulary(self._client, "/generate", body)
        return self.vocabulary

    async def _detokenized(self, token_ids: Sequence[int], call: Call) -> str:
        # Asked for the text of what is no token, the server leaves it out or fails with a 500.
        self.vocabulary.require(token_ids)
        body = {"model": self._model, "tokens": list(token_ids), "skip_special_tokens": False}
        reply = await self._client.post("/v1/detokenize", body, call)
        with self._client.expecting("/v1/detokenize"):
            return whole_text(reply["text"])

    async def _ids_of(self, texts: Sequence[str], call: Call) -> list[list[int]]:
        if not texts:
            return []
        rows = await self._tokens({"prompt": texts, "add_special_tokens": False}, call)
        with self._client.expecting(self._route):
            if len(rows) != len(texts):
                raise ValueError(f"{len(texts)} texts, but the tokens of {len(rows)}")
            return [[int(token) for token in row] for row in rows]

    async def _spelt(self, texts: Sequence[str], call: Call) -> list[list[Token]]:
        rows = await self._ids_of(texts, call)
        new = sorted({token for row in rows for token in row} - self._strings.keys())
        if new:
            body = {"model": self._model, "tokens": [[token] for token in new]}
            reply = await self._client.post(
                "/v1/detokenize", {**body, "skip_special_tokens": False}, call
            )
            with self._client.expecting("/v1/detokenize"):
                strings = map(text_of, reply["text"])
                self._strings.update(zip(new, strings, strict=True))
        return [[Token(token, self._strings[token]) for token in row] for row in rows]

    async def write(
        self, context: Context, sampling: Sampling, max_tokens: int, call: Call
    ) -> AsyncGenerator[Draft]:
        stop = list(sampling.stop)
        sampled = {**_sampled(sampling), "max_new_tokens": max_tokens, "stop": stop}
        if sampling.seed is not None:
            sampled["sampling_seed"] = sampling.seed_63_bits
        if sampling.special_tokens:
            sampled |= {"skip_special_tokens": False, "spaces_between_special_tokens": False}
        body = {
            "input_ids": self._known(context),
            "sampling_params": sampled,
            "stream": True,
            # Lists the tokens one by one, even if an event holds several.
            "return_logprob": True,
            "return_text_in_logprobs": True,
        }
        num_prompt, logprobs = len(context.token_ids), PieceLogprobs(sampling.logprobs)
        reading = _EventReader(self._client.upstream, num_prompt, sampling.stop, logprobs)
        last: Draft | None = None
        async with self._client.stream("/generate", body, call) as events:
            del body, context  # a stream may be open for long
            # Read to the very end, so that the connection can be reused.
            async for payload in events:
                if payload == DONE:
                    continue
                with self._client.expecting("a stream event"):
                    row = orjson.loads(payload)
                    self._raise_for_failure(row)
                    draft = reading.draft(row)
                if last is not None:
                    self._client.expect_no_text_after(last.end, payload)
                if draft.end is not None:
                    last = draft
                elif draft.pieces:
                    del payload, row  # held until the next event comes
                    yield draft
            if last is None:
                raise self._client.broken_off()
        yield last

    async def decode(self, context: Context, max_tokens: int, call: Call) -> Decoded:
        body = {
            "input_ids": self._known(context),
            "sampling_params": {**_sampled(GREEDY), "max_new_tokens": max_tokens},
            "return_logprob": True,
            "return_text_in_logprobs": True,
        }
        reply = await self._client.post("/generate", body, call, self._raise_for_failure)
        with self._client.expecting("the written answer"):
            meta = reply["meta_info"]
            _end(meta["finish_reason"], (), self._client.upstream)
            if meta["prompt_tokens"] != len(context.token_ids):
                sent, read = len(context.token_ids), meta["prompt_tokens"]
                raise ValueError(f"{sent} tokens sent, {read} read")
            rows = [
                (text_of(token), int(token_id), finite(logprob, _LOWEST))
                for logprob, token_id, token in meta["output_token_logprobs"]
            ]
            return decoded(text_of(reply["text"]), rows)

    async def score(
        self, context: Context, num_new: int, top_k: int, call: Call, *, entropy_known: bool
    ) -> Scores:
        # One field asks for the candidates of the prompt and of the next token alike, and the
        # next state's entropy is always wanted, so `entropy_known` saves nothing here.
        del entropy_known
        # The entry at the start is null, and the prefix cache serves the tokens before the start.
        start = max(context.bounds[-num_new - 1] - 1, 0)
        # The server dies of more candidates than tokens.
        self.vocabulary.require_candidates(top_k)
        body = {**self._prompt_logprobs(context, start), "top_logprobs_num": top_k}
        num_rows = len(context.token_ids) - start
        firsts = {tokens.start - start for tokens in context.ranges(num_new)}
        reply = await self._client.post(
            "/generate",
            body,
            call,
            self._raise_for_failure,
            lambda answer: _TOPS.loads(answer, num_rows, firsts),
        )
        with self._client.expecting("the scoring answer"):
            meta = reply["meta_info"]
            # Not output_token_logprobs, which holds only the sampled token.
            (next_top,) = meta["output_top_logprobs"]
            return Scores(
                steps=self._step_scores(context, num_new, start, meta, top_k),
                next_entropy=(
                    None if context.looks_ahead else entropy(_candidates(next_top, top_k), top_k)
                ),
                num_tokens=len(context.token_ids) - context.bounds[-num_new - 1],
                num_cached_tokens=_cached_tokens(meta),
            )

    async def token_logprobs(self, context: Context, call: Call) -> tuple[ScoredToken, ...]:
        first = context.bounds[-2]
        start = max(first - 1, 0)  # as in `score`
        body = {**self._prompt_logprobs(context, start), "return_text_in_logprobs": True}
        reply = await self._client.post("/generate", body, call, self._raise_for_failure)
        with self._client.expecting("the scoring answer"):
            rows, ids = reply["meta_info"]["input_token_logprobs"], context.token_ids
            if len(rows) != len(ids) - start:
                raise ValueError(f"{len(ids) - start} entries asked for, {len(rows)} came")
            if rows[0][0] is not None:
                raise ValueError("its first entry is not null, so the others may be one token off")
            own = rows[first - start :]
            return scored_tokens(
                [text_of(row[2]) for row in own],
                self._of_tokens(own, ids[first:]),
                context.texts[-1],
            )

    def _raise_for_failure(self, row: dict[str, Any]) -> None:
        """Raise an error: before the first token it is an event, later it is a finish reason."""
        if (error := error_in(row)) is not None:
            raise self._failure(error["message"], error.get("code"))
        reason = row["meta_info"]["finish_reason"]
        if isinstance(reason, dict) and reason["type"] == "abort":
            raise self._failure(reason["message"], reason.get("status_code"))

    def _failure(self, message: object, status: object) -> MotabError:
        upstream = self._client.upstream
        code = status_in({"code": status})
        words = "/generate refused" if code == HTTPStatus.BAD_REQUEST else "the stream failed"
        return refusal_of(upstream, code, str(message), f"{words}: {message}")

    def _known(self, context: Context) -> TokenIds:
        """Return the ids. Raises `UnknownToken`, because the server dies of what is none."""
        self.vocabulary.require(context.token_ids)
        return context.token_ids

    def _prompt_logprobs(self, context: Context, start: int) -> dict[str, Any]:
        """The fields of a request for the log-probabilities of the tokens after token `start`."""
        return {
            "input_ids": self._known(context),
            "sampling_params": {**_sampled(GREEDY), "max_new_tokens": 1},
            "return_logprob": True,
            "logprob_start_len": start,
        }

    def _step_scores(
        self, context: Context, num_new: int, start: int, meta: dict[str, Any], top_k: int
    ) -> tuple[StepScore, ...]:
        """V and H of the last `num_new` steps, from entries that begin with token `start`."""
        ids = context.token_ids
        rows, tops = meta["input_token_logprobs"], meta["input_top_logprobs"]
        if not len(rows) == len(tops) == len(ids) - start:
            raise ValueError(f"{len(ids) - start} entries asked for, {len(rows)}, {len(tops)} came")
        if rows[0][0] is not None or tops[0] is not None:
            raise ValueError("its first entry is not null, so the others may be one token off")
        scores: list[StepScore] = []
        for tokens in context.ranges(num_new):
            begin, end = tokens.start, tokens.stop
            value = oracle_value(self._of_tokens(rows[begin - start : end - start], ids[begin:end]))
            top = _candidates(tops[begin - start], top_k)
            scores.append(StepScore(value, entropy(top, top_k), len(tokens)))
        return tuple(scores)

    def _of_tokens(self, entries: list[Sequence[Any]], token_ids: list[int]) -> list[float | None]:
        """The log-probabilities of the prompt's own tokens, or None, which core refuses, if
        missing.
        """
        if list(map(_ID, entries)) != token_ids:
            last = None if self.vocabulary.num_tokens is None else self.vocabulary.num_tokens - 1
            for entry, token_id in zip(entries, token_ids, strict=True):
                # SGLang writes the last id of the vocabulary as 0.
                if entry[1] != token_id and not (entry[1] == 0 and token_id == last):
                    raise ValueError(f"token {token_id} was sent, the entry is token {entry[1]}'s")
        return all_finite(map(_LOGPROB, entries), _LOWEST)


@dataclass(slots=True)
class _EventReader:
    """Reads a stream. Events repeat all text, unless --incremental-streaming-output is set."""

    upstream: str
    num_prompt_tokens: int
    stop: tuple[str, ...]
    logprobs: PieceLogprobs
    num_tokens: int = 0
    text: str | None = ""
    """The text of all events, as long as they repeat it."""
    spelling: Spelling = field(default_factory=Spelling)

    def draft(self, row: dict[str, Any]) -> Draft:
        """The new tokens of an event. Raises ValueError if one is missing."""
        meta = row["meta_info"]
        rows, text = self._new(row, meta)
        logprobs, ids, strings = zip(*rows, strict=True) if rows else ((), (), ())
        self.num_tokens = meta["completion_tokens"]
        end, is_end_token = _end(meta["finish_reason"], self.stop, self.upstream)
        if is_end_token:  # it is counted, but has no text
            logprobs, ids, strings = logprobs[:-1], ids[:-1], strings[:-1]
        if ids and row.get("text") is None:
            raise ValueError(f"{len(ids)} tokens came without their text")
        if end == "length":  # half a character, whose other tokens will not come
            text = text.rstrip(REPLACEMENT)
        spelt = self.spelling.feed_columns(text, ids, strings)
        if self.logprobs.wanted:
            self.logprobs.add(all_finite(logprobs, _LOWEST))
        if end is None:
            piece_logprobs = self.logprobs.take(len(spelt.pieces))
            return Draft(spelt.pieces, token_ids=spelt.token_ids, logprobs=piece_logprobs)
        pieces = spelt.pieces + self.spelling.rest()
        piece_logprobs = self.logprobs.take(len(pieces))
        return Draft(pieces, end, _cached_tokens(meta), logprobs=piece_logprobs)

    def _new(self, row: dict[str, Any], meta: dict[str, Any]) -> tuple[list[list[Any]], str]:
        """The log-probabilities of an event's new tokens, with their ids and strings, and the text
        that is new.
        """
        if meta["prompt_tokens"] != self.num_prompt_tokens:
            # A server with --allow-auto-truncate would continue a shortened context.
            raise ValueError(f"{self.num_prompt_tokens} tokens sent, {meta['prompt_tokens']} read")
        rows: list[list[Any]] = meta["output_token_logprobs"]
        count, total = len(row["output_ids"]), meta["completion_tokens"]
        if len(rows) != count:
            raise ValueError(f"{count} output_ids, but {len(rows)} log-probabilities")
        if count != total:
            if self.num_tokens + count != total:
                raise ValueError(f"{self.num_tokens} tokens and then {count} are not {total}")
            self.text = None
            return rows, text_of(row.get("text"))
        before = self.text
        if before is None:
            raise ValueError(f"it repeats all of {total} tokens, as no event before it did")
        self.text = before if row.get("text") is None else text_of(row["text"])
        if not self.text.startswith(before):
            raise ValueError("its text does not continue the text before it")
        return rows[self.num_tokens :], self.text[len(before) :]


def _end(
    reason: dict[str, Any] | str | None, stop: tuple[str, ...], upstream: str
) -> tuple[FinishReason | None, bool]:
    """The reason of the end, and whether it was an end token: stop strings match as text."""
    if reason is None:
        return None, False
    if not isinstance(reason, dict):
        return end_of(reason, upstream), False
    matched = reason.get("matched")
    if isinstance(matched, str) and matched not in stop:
        # A model that computes NaN "stops" at "NaN happened".
        raise ValueError(f"it stopped at {matched!r}, which is no stop string")
    return end_of(reason["type"], upstream), isinstance(matched, int | list)


def _sampled(sampling: Sampling) -> dict[str, Any]:
    """All sampling fields: the server fills omitted ones from `--preferred-sampling-params`."""
    return {
        **sglang_sampling(sampling),
        "min_new_tokens": 0,
        "ignore_eos": False,
        "skip_special_tokens": True,
        "no_stop_trim": False,
    }


def _candidates(entries: Sequence[Sequence[Any]], top_k: int) -> list[float | None]:
    return complete(all_finite(map(_LOGPROB, entries), _LOWEST), top_k)


def _cached_tokens(meta: dict[str, Any]) -> int | None:
    cached = meta.get("cached_tokens")
    return None if cached is None else int(cached)
