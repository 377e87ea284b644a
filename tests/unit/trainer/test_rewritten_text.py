"""Tests the tokens of a student whose tokenizer rewrites text into a normal form of Unicode."""

from dataclasses import dataclass

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from trainer.foreign.weigh_tokens import ends_in

PREFIX, SUFFIX = "<a>", "<e>\n"


@dataclass
class Student:
    """A tokenizer as transformers wraps it; each token is a byte."""

    backend_tokenizer: Tokenizer

    def decode(self, ids: list[int], **_: bool) -> str:
        return str(self.backend_tokenizer.decode(ids, skip_special_tokens=False))


def student(normalizer: normalizers.Normalizer | None) -> Student:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return Student(tokenizer)


def ends_of(learner: Student, output: str) -> list[int]:
    ids = learner.backend_tokenizer.encode(PREFIX + output + SUFFIX).ids
    found = ends_in(learner, ids, output)
    return [end for end in found if 0 < end <= len(output)]


@pytest.mark.parametrize(
    ("output", "ends"),
    [
        ("cafe\u0301 x", [1, 2, 3, 5, 5, 6, 7]),
        ("\u212b", [1, 1]),
        ("a\u0323\u0301b", [2, 2, 2, 3, 3, 4]),
        ("e\u0301", [2, 2]),
    ],
)
def test_ends_count_the_characters_as_they_were_written(output: str, ends: list[int]) -> None:
    assert ends_of(student(normalizers.NFC()), output) == ends


def test_a_text_in_the_normal_form_has_the_ends_that_it_has_without_one() -> None:
    text = "café 数学 🚀"
    assert ends_of(student(normalizers.NFC()), text) == ends_of(student(None), text)


def test_a_tokenizer_that_drops_text_is_named_by_its_normaliser() -> None:
    learner = student(normalizers.Replace("x", ""))
    ids = learner.backend_tokenizer.encode("<a>other<e>").ids
    with pytest.raises(ValueError, match=r"spell another text, which its normaliser \(Replace"):
        ends_in(learner, ids, "axb")
