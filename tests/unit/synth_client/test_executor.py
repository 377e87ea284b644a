"""The executor `ray` without Ray: what its actors do, and what is refused before it starts."""

import asyncio
import importlib.util
import pickle
from pathlib import Path

import pytest
from typer.testing import CliRunner

from motab.cli import app
from synth_client.asking.errors import SynthesisError
from synth_client.asking.pool import Load, Outcome
from synth_client.cluster.actors import Mailbox, Report, row_of, unit_of
from synth_client.cluster.executor import require_ray
from synth_client.errors import ClusterError
from synth_client.questions.question import Question, Unit
from tests.support.patience import PATIENCE_S
from tests.support.records import breached, record_of
from trajectory_records.record import Message

REPORT = Report("w", Load(), ())


def outcome(key: bytes) -> Outcome:
    question = Question("q", (Message(role="user", content="?"),))
    return Outcome(Unit(question, 0, key), record_of(breached()))


async def test_a_letter_is_posted_when_the_run_asks_for_the_next_ones() -> None:
    mailbox = Mailbox()
    async with asyncio.TaskGroup() as group:
        first = group.create_task(mailbox.post(outcome(b"1")))
        assert await mailbox.take() == [outcome(b"1")]
        await asyncio.sleep(0)
        assert not first.done()
        second = group.create_task(mailbox.post(REPORT))
        assert await mailbox.take() == [REPORT]
        await first
        assert not second.done()
        second.cancel()


async def test_a_block_that_is_done_again_leaves_out_what_has_an_outcome() -> None:
    mailbox = Mailbox()
    keys = [b"1", b"2", b"3"]
    assert await mailbox.begin(keys) == set(keys)
    post = asyncio.create_task(mailbox.post(outcome(b"2")))
    await mailbox.take()
    assert await mailbox.begin(keys) == {b"1", b"3"}
    await mailbox.end(keys)
    post.cancel()


async def test_draining_waits_for_the_blocks_under_way_and_lets_no_other_begin() -> None:
    mailbox = Mailbox()
    await mailbox.begin([b"1", b"2"])
    drained = asyncio.create_task(mailbox.drain())
    await mailbox.draining()
    assert await mailbox.begin([b"3"]) == set()
    await mailbox.end([b"3"])
    await asyncio.sleep(0)
    assert not drained.done()
    await mailbox.end([b"1", b"2"])
    await asyncio.wait_for(drained, PATIENCE_S)


def test_a_unit_comes_back_from_its_row() -> None:
    messages = (Message(role="system", content="é"), Message(role="user", content="\n"))
    for answer in ("4", None):
        unit = Unit(Question("q1", messages, answer), 3, b"\x00\xff" * 8)
        assert unit_of(row_of(unit)) == unit


def test_an_error_survives_the_way_between_processes() -> None:
    error = SynthesisError(
        "full",
        status=429,
        error_type="t",
        param="p",
        code="c",
        retry_after_s=2.5,
        spent=record_of(breached()).usage,
    )
    there = pickle.loads(pickle.dumps(error))
    assert (str(there), vars(there)) == (str(error), vars(error))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--ray-workers", "2"), "--ray-workers needs --executor ray"),
        (("--ray-address", "auto"), "--ray-address needs --executor ray"),
        (("--executor", "ray", "--ray-workers", "0"), "--ray-workers"),
        (("--executor", "ray", "--ray-address", "ray://h:10001"), "run motab on a node"),
        (("--executor", "spark"), "--executor"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    more: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(b'{"question": "one"}\n')
    asked = ("--output", str(tmp_path / "out.jsonl"), "--base-url", "http://h/v1", "--model", "m")
    refused = CliRunner(env={"COLUMNS": "400"}).invoke(app, ["synth", str(source), *asked, *more])
    assert refused.exit_code == 2
    assert said in " ".join(refused.output.split())
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize("lacking", ["ray", "pyarrow", "pandas"])
def test_without_ray_it_is_said_what_to_install(
    lacking: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == lacking else name)
    with pytest.raises(ClusterError, match=r"pip install 'motab\[ray\]'"):
        require_ray()
