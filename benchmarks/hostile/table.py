"""Prints the rows of an earlier and a later measurement as the table of docs/security.md."""

from collections.abc import Iterable, Sequence

from benchmarks.hostile.meter import Row

_HEAD = ("threat", "tried", "attacker has", "before", "after")


def markdown(before: Sequence[Row], after: Sequence[Row]) -> str:
    """Return a table with a line for every attack of `after`."""
    earlier = {(row.attack, row.access): row for row in before}
    lines = [_HEAD, ("---",) * len(_HEAD)]
    for row in after:
        then = earlier.get((row.attack, row.access))
        figures = "not measured" if then is None else _figures(then)
        lines.append((row.threat, row.tried, row.access, figures, _figures(row)))
    return "\n".join(_line(cells) for cells in lines)


def failed(rows: Iterable[Row], *, most_memory: float, latest_ms: float) -> list[str]:
    """Return a line for every target that an attack made the proxy miss."""
    found = []
    for row in rows:
        name = f"{row.attack} ({row.access})"
        if row.memory_ratio > most_memory:
            found.append(f"{name}: {row.memory_ratio:.2f} times the memory")
        if row.health_worst_ms is not None and row.health_worst_ms > latest_ms:
            found.append(f"{name}: /health took {row.health_worst_ms:.0f} ms")
        if row.num_harmed:
            found.append(f"{name}: {row.num_harmed} trajectories of others failed")
    return found


def _figures(row: Row) -> str:
    harmed = f"; {row.num_harmed} of others harmed" if row.num_harmed else ""
    health = "" if row.health_worst_ms is None else f", /health {row.health_worst_ms:.0f} ms"
    return (
        f"{row.answer}; {row.memory_before_mb:.0f} -> {row.memory_peak_mb:.0f} MB, "
        f"{row.processor_s:.1f} s processor{health}{harmed}"
    )


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
