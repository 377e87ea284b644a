"""Connects the executor `ray` to Ray Data; imported only where it runs.

`read_datasource -> repartition -> map_batches`: read on this node, because no other node needs to
see its disk, cut into blocks, and asked by an actor on every node.
"""

import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, Final, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from synth_client.cluster.actors import Handle, Mailbox, Worker, WorkerSettings, row_of
from synth_client.errors import ClusterError
from synth_client.files.atomic import output_errors
from synth_client.questions.question import Unit

T = TypeVar("T")
_ROWS_PER_GROUP: Final = 4096
_MOST_ROWS_PER_BLOCK: Final = 64
# A worker holds up to twice as many units as it may ask at a time, in about this many blocks.
_BLOCKS_PER_WORKER: Final = 16
# A worker waits for the network nearly all the time, and cutting into blocks needs a whole CPU.
_CPUS_PER_WORKER: Final = 0
_CONNECT_TIMEOUT_S: Final = 10.0
# Posts that wait for their fsync are calls under way, and must not keep other calls out.
_MOST_CALLS: Final = 1_000_000
_SCHEMA: Final = pa.schema(
    [
        ("key", pa.binary()),
        ("sample", pa.int64()),
        ("id", pa.large_string()),
        ("messages", pa.large_binary()),
        ("answer", pa.large_string()),
    ]
)


def write_units(batches: Iterator[list[Unit]], path: Path) -> int:
    """Write the units into a Parquet file. Returns their number."""
    num_units = 0
    with output_errors(path), pq.ParquetWriter(path, _SCHEMA) as writer:
        for units in batches:
            rows = pa.Table.from_pylist([row_of(unit) for unit in units], _SCHEMA)
            writer.write_table(rows, row_group_size=_ROWS_PER_GROUP)
            num_units += len(units)
    return num_units


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Connect to a cluster; without an address, start one here and stop it afterwards."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if address is not None:
        _check(address)
    try:
        ray.init(
            address or "local",
            include_dashboard=False if address is None else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterError(f"Ray: {_first_line(error)}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _check(address: str) -> None:
    """Fail early, because Ray itself waits for minutes if nobody answers."""
    host, colon, port = address.rpartition(":")
    if not colon:  # "auto", "local"
        return
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_TIMEOUT_S).close()
    except (OSError, ValueError) as error:
        raise ClusterError(f"no Ray cluster at {address}: {error}") from error


def num_nodes() -> int:
    """Return the number of nodes in the cluster now."""
    return sum(node["Alive"] for node in ray.nodes())


def open_mailbox() -> Handle:
    """Open the mailbox on this node, because it is of no use without this process."""
    return ray.remote(Mailbox).options(max_concurrency=_MOST_CALLS, **_here()).remote()


def begin_work(
    path: Path, settings: WorkerSettings, num_workers: int, mailbox: Handle
) -> Awaitable[None]:
    """Have the units in a file asked, each worker with `settings`.

    Ray Data's own loop also runs in a process of Ray: here it would be a thread that nothing stops.
    """
    task = ray.remote(_work).options(max_retries=0, **_here())
    working: Awaitable[None] = task.remote(path.absolute(), settings, num_workers, mailbox)
    return working


def _here() -> dict[str, Any]:
    node = ray.get_runtime_context().get_node_id()
    return {"num_cpus": 0, "label_selector": {"ray.io/node-id": node}}


def _work(path: Path, settings: WorkerSettings, num_workers: int, mailbox: Handle) -> None:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_no_progress_timeout_s = -1  # a trajectory may take an hour
    num_units = 2 * settings.servers.concurrency
    num_rows = min(max(num_units // _BLOCKS_PER_WORKER, 1), _MOST_ROWS_PER_BLOCK)
    num_blocks = -(-num_units // num_rows)
    source = _Units(path)
    blocks = (
        ray.data.read_datasource(
            source, override_num_blocks=source.num_groups, concurrency=1, num_cpus=0
        )
        .repartition(target_num_rows_per_block=num_rows)
        .map_batches(
            Worker,
            fn_constructor_args=(settings, mailbox),
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(
                size=num_workers,
                max_tasks_in_flight_per_actor=num_blocks,
                max_concurrent_calls_per_actor=num_blocks,
            ),
            num_cpus=_CPUS_PER_WORKER,
            ray_remote_args_fn=_nodes(),
        )
    )
    for _ in blocks.iter_batches(batch_size=None, batch_format="pyarrow"):
        pass


def _nodes() -> Callable[[], dict[str, Any]]:
    """Place each worker: round robin over all nodes; after a node is lost, on any other."""
    nodes = cycle([node["NodeID"] for node in ray.nodes() if node["Alive"]])

    def placed() -> dict[str, Any]:
        return {"scheduling_strategy": NodeAffinitySchedulingStrategy(next(nodes), soft=True)}

    return placed


async def answered(call: Awaitable[T]) -> T:
    """Return an actor's answer. Raises `ClusterError` if the call fails."""
    try:
        return await call
    except RayError as error:
        raise ClusterError(f"Ray: {_first_line(error)}") from error


class _Units(Datasource):  # type: ignore[misc] # Ray is not typed
    """The file of units, by its row groups. Reading a group again gives the same units."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path.absolute()
        file = pq.read_metadata(path)
        self._sizes = [file.row_group(i).num_rows for i in range(file.num_row_groups)]
        self._num_bytes = path.stat().st_size

    @property
    def num_groups(self) -> int:
        return len(self._sizes)

    @property
    def supports_distributed_reads(self) -> bool:
        """Return False, because only this node has the file."""
        return False

    def estimate_inmemory_data_size(self) -> int:
        return self._num_bytes

    def get_read_tasks(
        self,
        parallelism: int,  # noqa: ARG002 - Ray's interface
        per_task_row_limit: int | None = None,
        data_context: Any = None,  # noqa: ANN401, ARG002
    ) -> list[ReadTask]:
        return [
            ReadTask(
                partial(_read_group, self._path, group),
                BlockMetadata(num_rows, None, None, None),
                _SCHEMA,
                per_task_row_limit,
            )
            for group, num_rows in enumerate(self._sizes)
        ]


def _read_group(path: Path, group: int) -> list[pa.Table]:
    return [pq.ParquetFile(path).read_row_group(group)]


def _first_line(error: Exception) -> str:
    # A failed task's own text is the stack trace, so its cause is taken.
    cause = getattr(error, "cause", None) or error
    return str(cause).strip().partition("\n")[0] or type(cause).__name__
