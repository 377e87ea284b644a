import fcntl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from proxy.backends.worker_slots import WorkerSlots
from proxy.engine.admission import OwnSeats, Seats
from proxy.serving.shared_seats import SharedSeats

Open = Callable[[int], SharedSeats]


@pytest.fixture
def open_as(tmp_path: Path) -> Iterator[Open]:
    """The seats as one of three workers sees them."""
    with ExitStack() as stack:
        yield lambda worker: stack.enter_context(
            SharedSeats(tmp_path / "seats", WorkerSlots(worker, 3))
        )


@pytest.fixture(params=["own", "shared"])
def seats(request: pytest.FixtureRequest, open_as: Open) -> Seats:
    return OwnSeats() if request.param == "own" else open_as(1)


def test_no_more_than_the_limit_are_taken(seats: Seats) -> None:
    assert seats.take(2, most=3)
    assert not seats.take(2, most=3)
    assert seats.num_taken == 2
    assert seats.take(1, most=3)
    seats.leave(2)
    assert seats.num_taken == 1
    assert seats.take(2, most=3)


def test_what_one_worker_takes_the_others_lack(open_as: Open) -> None:
    first, second = open_as(0), open_as(1)
    assert first.take(2, most=3)
    assert not second.take(2, most=3)
    assert second.take(1, most=3)
    assert first.num_taken == second.num_taken == open_as(2).num_taken == 3


def test_a_dead_worker_s_seats_are_freed_and_no_others(open_as: Open) -> None:
    first, second = open_as(0), open_as(1)
    first.take(2, most=9)
    second.take(3, most=9)
    second.clear(0)
    assert first.num_taken == 3


@pytest.mark.parametrize("change", ["take", "leave", "clear"])
def test_nobody_changes_the_seats_while_another_does(
    change: str, open_as: Open, tmp_path: Path
) -> None:
    seats, other = open_as(0), open_as(1)
    other.take(1, most=9)
    changes = {
        "take": lambda: seats.take(1, most=9),
        "leave": lambda: other.leave(1),
        "clear": lambda: seats.clear(1),
    }
    thread = threading.Thread(target=changes[change])
    with (tmp_path / "seats").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
        assert seats.num_taken == 1
    thread.join()
    assert seats.num_taken == (2 if change == "take" else 0)
