r"""Tokenises as LLaMA-Factory does, with labels and weights by span: `weigh_tokens.py JOB.json`.

It runs in the trainer's environment, so it imports nothing of motab's. It writes the dataset that
`tokenized_path` names and prints one line of JSON; unusable data is reported as {"error": ...}.

Let C_M(x) be the natural log-probability of the output's first x characters under model M, linear
between the ends of M's tokens. A student's token y_t over the characters (a, b] has the ratio

    r_t = (C_S(b) - C_S(a)) - (C_T(b) - C_T(a)),

and at level `step` every token of a step has the ratio of the whole step, divided by its number of
tokens. The weight of a learned token that the teacher wrote is

    w_t = g_t / mean(g),    g_t = exp(power * min(max(r_t, log(clip_low)), log(clip_high))),

with the mean over all such tokens of the dataset; every other token has the weight 1.

At level `prefix` the weights are computed while the student trains (`train_weighted.py`). The
dataset then has log pi_T of every token of the output, for a frozen student log pi_S as well, and
marks the tokens that are weighted.
"""

import json
import math
import shutil
import sys
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

IGNORED = -100


@dataclass(frozen=True)
class Fit:
    """The formula for weights; see the module's docstring."""

    level: str
    power: float
    clip_low: float
    clip_high: float
    discount: float = 1.0
    renew: bool = True

    def unnormalised(self, log_ratio: float) -> float:
        """g_t."""
        clipped = min(max(log_ratio, math.log(self.clip_low)), math.log(self.clip_high))
        return math.exp(self.power * clipped)


@dataclass(frozen=True)
class Token:
    """The label and weight of one token; `unnormalised` is None if the weight is 1.

    At level `prefix` each token of the output has its log-probability under both models, and
    `unnormalised` is 1 if it is weighted.
    """

    learned: bool
    unnormalised: float | None
    student: float = math.nan
    teacher: float = math.nan


def so_far(sums: dict[str, list[Any]], character: int) -> float:
    """Return C_M at a character: `sums` has its values at the ends of the model's tokens."""
    ends, values = sums["ends"], sums["sums"]
    after = bisect_left(ends, character)
    if ends[after] == character:
        return float(values[after])
    start, before = (ends[after - 1], values[after - 1]) if after else (0, 0.0)
    share = (character - start) / (ends[after] - start)
    return float(before + share * (values[after] - before))


def logprob(sums: dict[str, list[Any]], start: int, end: int) -> float:
    """Return a model's log-probability of the characters `start` to `end` (exclusive)."""
    return so_far(sums, end) - (so_far(sums, start) if start else 0.0)


def log_ratio(learn: dict[str, Any], start: int, end: int) -> float:
    """Return the student's minus the teacher's log-probability of `start` to `end` (exclusive)."""
    return logprob(learn["student"], start, end) - logprob(learn["teacher"], start, end)


def tokens_of(learn: dict[str, Any], ends: list[int], fit: Fit | None) -> list[Token]:
    """Return one `Token` for each token of an answer; `ends` are their ends in the output.

    A token belongs to the unit in which it ends. The template's text before the output belongs to
    the first unit, the end of the turn to the last; neither is weighted.
    """
    unit_ends = [unit["end"] for unit in learn["units"]]
    length = unit_ends[-1]
    units = [bisect_left(unit_ends, min(max(end, 1), length)) for end in ends]
    found = [Token(learn["units"][unit]["learned"], None) for unit in units]
    if fit is None:
        return found
    inside = [i for i, end in enumerate(ends) if 0 < end <= length]
    by = units if fit.level == "step" else ends  # parts of one character share its end
    start = 0
    for _, group in groupby(inside, key=lambda i: by[i]):
        members = list(group)
        unit, end = learn["units"][units[members[0]]], ends[members[-1]]
        if fit.level == "step":
            start, end = ([0, *unit_ends])[units[members[0]]], unit["end"]
        if fit.level == "prefix":
            both = [logprob(learn[name], start, end) for name in ("student", "teacher")]
            for i in members:
                shares = (total / len(members) for total in both)
                found[i] = Token(unit["learned"], 1.0 if unit["weighted"] else None, *shares)
        elif unit["weighted"]:
            raw = fit.unnormalised(log_ratio(learn, start, end) / len(members))
            for i in members:
                found[i] = Token(unit["learned"], raw)
        start = end
    return found


def ends_in(tokenizer: Any, ids: list[int], output: str) -> list[int]:  # noqa: ANN401
    """Return the character of `output` at which each token of an answer ends.

    Tokens before the output end at 0 or less. A tokenizer that rewrites text (NFC) counts the
    characters of the output as it was written. Raises ValueError if the tokens spell another text.
    """
    text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    whole = untrimmed(tokenizer)
    start = text.find(output)
    is_rewritten = start < 0 and whole.normalizer is not None
    if is_rewritten:
        rewritten = whole.normalizer.normalize_str(output)
        start = text.find(rewritten)
        text = text[:start] + output + text[start + len(rewritten) :]
    encoded = whole.encode(text, add_special_tokens=False)
    if start < 0 or encoded.ids != ids:
        by = (
            "" if whole.normalizer is None else f", which its normaliser ({whole.normalizer}) makes"
        )
        raise ValueError(f"the student's tokens spell another text{by}")
    offsets = joined(encoded.offsets) if is_rewritten else encoded.offsets
    return [end - start for _, end in offsets]


def joined(offsets: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the offsets of a rewritten text, in which a letter's marks belong to its tokens."""
    found: list[tuple[int, int]] = []
    following = None
    for index in reversed(range(len(offsets))):
        start, end = offsets[index]
        if index + 1 < len(offsets) and offsets[index + 1] == (start, end):
            end = found[-1][1]  # another part of the same character
        elif following is not None:
            end = max(end, following)
        found.append((start, end))
        following = start
    return found[::-1]


def untrimmed(tokenizer: Any) -> Any:  # noqa: ANN401
    """Return the tokenizer without the settings that exclude blanks from a token's offsets."""
    from tokenizers import Tokenizer  # noqa: PLC0415

    if not hasattr(tokenizer, "motab_untrimmed"):
        content = json.loads(tokenizer.backend_tokenizer.to_str())
        tokenizer.motab_untrimmed = Tokenizer.from_str(
            json.dumps({**content, "post_processor": None, "truncation": None, "padding": None})
        )
    return tokenizer.motab_untrimmed


@dataclass(frozen=True)
class Place:
    """The position of the answer's tokens in an example, with their labels and weights."""

    start: int
    tokens: list[Token]


def place_of(labels: list[int], ids: list[int], tokens: list[Token], num_turns: int) -> Place:
    """Find the answer, the last run of labels; `ids` and `tokens` are of the whole answer.

    Without any tokens if the answer was cut off. Raises ValueError if something else is there.
    """
    starts = [
        i for i, x in enumerate(labels) if x != IGNORED and (not i or labels[i - 1] == IGNORED)
    ]
    if len(starts) < num_turns:
        return Place(len(labels), [])
    end = max(i for i, x in enumerate(labels) if x != IGNORED) + 1
    run = labels[starts[-1] : end]
    # An end-of-sequence token may be added to the template's text.
    if run[: len(ids)] != ids[: len(run)] or len(run) > len(ids) + 1:
        raise ValueError("LLaMA-Factory made other tokens from it")
    more = [Token(tokens[-1].learned, None)] * (len(run) - len(ids))
    return Place(starts[-1], [*tokens[: len(run)], *more])


def places_of(job: dict[str, Any], fit: Fit | None, plain: "Plain") -> list[Place]:
    """Return a place for each line. Raises ValueError with the line that LLaMA-Factory changed."""
    places = []
    with Path(job["lines"]).open(encoding="utf-8") as lines:
        for number, (line, example) in enumerate(zip(lines, plain.examples, strict=True), start=1):
            fields = json.loads(line)
            messages, learn = fields["messages"], fields["learn"]
            system = messages.pop(0)["content"] if messages[0]["role"] == "system" else None
            turns = plain.template.encode_multiturn(plain.tokenizer, messages, system, None)
            ids = turns[-1][1]
            num_turns = 1 if plain.only_last else len(turns)
            try:
                tokens = tokens_of(learn, ends_in(plain.tokenizer, ids, learn["output"]), fit)
                places.append(place_of(example["labels"], ids, tokens, num_turns))
            except ValueError as error:
                raise ValueError(f"data.path: the answer of example {number}: {error}") from error
    return places


@dataclass(frozen=True)
class Plain:
    """The data as LLaMA-Factory tokenises it; `only_last`: earlier turns are masked."""

    tokenizer: Any
    template: Any
    examples: Any
    only_last: bool


def loaded(settings: dict[str, Any]) -> Plain:
    """Tokenise with LLaMA-Factory itself."""
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer  # noqa: PLC0415
    from llamafactory.hparams import get_train_args  # noqa: PLC0415
    from llamafactory.model import load_tokenizer  # noqa: PLC0415

    model_args, data_args, training_args, _, _ = get_train_args(settings)
    module = load_tokenizer(model_args)
    template = get_template_and_fix_tokenizer(module["tokenizer"], data_args)
    datasets = get_dataset(template, model_args, data_args, training_args, "sft", **module)
    return Plain(module["tokenizer"], template, datasets["train_dataset"], data_args.mask_history)


@dataclass(frozen=True)
class Column:
    """A number for every token: `of` a token of the answer, `elsewhere` for all other tokens."""

    of: Callable[[Token], float]
    elsewhere: float


def columns_of(fit: Fit | None, mean: float) -> dict[str, Column]:
    """Return the columns that the training reads; `mean` is the mean of g."""
    if fit is None:
        return {}
    if fit.level != "prefix":
        weight = Column(lambda t: 1.0 if t.unnormalised is None else t.unnormalised / mean, 1.0)
        return {"token_weights": weight}
    columns = {
        "teacher_logprobs": Column(lambda t: t.teacher, math.nan),
        "by_prefix": Column(lambda t: float(t.unnormalised is not None), 0.0),
    }
    if not fit.renew:
        columns["student_logprobs"] = Column(lambda t: t.student, math.nan)
    return columns


def rewritten(plain: Plain, places: list[Place], columns: dict[str, Column], cache: Path) -> Any:  # noqa: ANN401
    """Return the examples with the labels of `places` and the `columns`."""
    from datasets import Sequence, Value  # noqa: PLC0415

    def changed(example: dict[str, Any], index: int) -> dict[str, Any]:
        labels, place = list(example["labels"]), places[index]
        values = {name: [column.elsewhere] * len(labels) for name, column in columns.items()}
        for i, token in enumerate(place.tokens, start=place.start):
            if not token.learned:
                labels[i] = IGNORED
            for name, column in columns.items():
                values[name][i] = column.of(token)
        return {"labels": labels, **values}

    features = plain.examples.features.copy()
    unused = [name for name in ("images", "videos", "audios") if name in features]
    for name in unused:
        features.pop(name)
    features.update(dict.fromkeys(columns, Sequence(Value("float32"))))
    return plain.examples.map(
        changed,
        with_indices=True,
        remove_columns=unused,
        features=features,
        new_fingerprint="motab",
        cache_file_name=str(cache),
    )


def weigh(job: dict[str, Any]) -> dict[str, Any]:
    """Write the dataset, return the object to print. `trainer.training.loss_spans` makes `job`."""
    from datasets import DatasetDict  # noqa: PLC0415

    fit = None if job["fit"] is None else Fit(**job["fit"])
    plain = loaded(job["settings"])
    try:
        places = places_of(job, fit, plain)
    except ValueError as error:
        return {"error": str(error)}
    raw = [
        token.unnormalised
        for place in places
        for token in place.tokens
        if token.unnormalised is not None
    ]
    if fit is not None and not raw:
        return {"error": "loss.kind: weighted: no learned token was written by the teacher"}
    mean = None if fit is None or fit.level == "prefix" else math.fsum(raw) / len(raw)
    output = Path(job["output"])
    cache = output.with_suffix(".arrow")
    shutil.rmtree(output, ignore_errors=True)
    cache.unlink(missing_ok=True)
    examples = rewritten(plain, places, columns_of(fit, mean or 1.0), cache)
    kept = [i for i, labels in enumerate(examples["labels"]) if any(x != IGNORED for x in labels)]
    if not kept:
        return {"error": "training.max_tokens: the cut removes everything that is learned"}
    DatasetDict({"train": examples.select(kept)}).save_to_disk(str(output))
    cache.unlink()
    return {
        "num_examples": len(kept),
        "num_cut": len(places) - len(kept),
        "num_weighted": len(raw),
        "mean_of_g": mean,
    }


def main() -> None:
    """Print one line, the last."""
    print(json.dumps(weigh(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))))  # noqa: T201


if __name__ == "__main__":
    main()
