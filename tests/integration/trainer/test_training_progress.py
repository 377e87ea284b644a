"""Tests how a training's losses and checkpoints are read."""

from pathlib import Path

from trainer.training.progress import Losses, sparkline
from trainer.training.run_folder import RunFolder


def test_losses_are_read_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "trainer_log.jsonl"
    losses = Losses(path)
    assert not losses.read()
    path.write_text('{"current_steps": 1, "total_steps": 9, "loss": 2.5}\n{"current_st')
    assert losses.read()
    assert (losses.by_step, losses.total) == ({1: 2.5}, 9)
    assert not losses.read()
    with path.open("a") as file:
        file.write('eps": 2, "total_steps": 9, "loss": 2.0}\n{"total_steps": 9}\n')
    assert losses.read()
    assert (losses.by_step, losses.step) == ({1: 2.5, 2: 2.0}, 2)
    losses.forget_after(1)
    assert losses.by_step == {1: 2.5}


def test_the_curve_shows_means_from_lowest_to_highest() -> None:
    assert sparkline([3.0, 3.0, 2.0, 1.0, 1.0, 1.0], width=3) == "█▃▁"
    assert sparkline([1.0, 1.0]) == "▁▁"
    assert not sparkline([])


def test_a_whole_checkpoint_is_one_whose_state_can_be_read(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for step, state in ((9, "{}"), (10, "{}"), (11, '{"ha')):
        path = tmp_path / "model" / f"checkpoint-{step}"
        path.mkdir(parents=True)
        (path / "trainer_state.json").write_text(state)
    found = folder.checkpoint()
    assert found is not None
    assert found.step == 10
    assert not (tmp_path / "model" / "checkpoint-11").exists()
