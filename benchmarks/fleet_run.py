"""Runs a fleet of trajectories at once, and says how much of its capacity was used at what cost."""

from dataclasses import dataclass

from benchmarks.load import plain_stream, together, trajectory
from benchmarks.processes import Pair, Process, Simulator
from benchmarks.simulator.plan import Plan


@dataclass(frozen=True, slots=True)
class FleetRun:
    """One fleet, driven through one proxy."""

    share: float
    """Seconds of decoding / seconds under way, summed over the trajectories: a trajectory under
    way holds a stream of the student's."""
    wall_s: float
    """Wall-clock seconds of all trajectories."""
    calls_a_step: float
    cores: tuple[float, float, float]
    """Processor seconds for each second of decoding: proxy, student, teacher. Unlike the wall they
    do not depend on the machine's other work; scaled as if all were under way all the time."""
    us_a_token: float
    """The proxy's processor microseconds for a student's token."""
    cpu_s: float
    """The proxy's processor seconds for all trajectories."""
    memory_mb: float

    @property
    def cost(self) -> str:
        """The processor of a token, and of the simulated servers."""
        _, student, teacher = self.cores
        servers = f"simulated student {student:.2f}, teacher {teacher:.2f} cores"
        return f"{self.us_a_token:.0f} us a token; {servers}"


async def fleet_run(
    motab: Process, servers: Pair[Simulator], plans: list[Plan], tok_s: float
) -> FleetRun:
    """Drive a trajectory of each plan through a proxy of these servers; `tok_s` is a stream's."""
    student, teacher = servers.student, servers.teacher
    before = [process.cpu_s() for process in (motab, student, teacher)]
    done = await together(trajectory(motab, plan) for plan in plans)
    spent = [
        process.cpu_s() - was
        for process, was in zip((motab, student, teacher), before, strict=True)
    ]
    memory_mb = motab.rss_mb()
    seconds = decoding_s(plans, tok_s)
    proxy_s, student_s, teacher_s = (one * len(plans) / seconds for one in spent)
    return FleetRun(
        share=seconds / sum(one.seconds for one in done),
        wall_s=max(one.seconds for one in done),
        calls_a_step=sum(one.usage["score_calls"] for one in done)
        / sum(plan.num_steps for plan in plans),
        cores=(proxy_s, student_s, teacher_s),
        us_a_token=1e6 * spent[0] / sum(plan.num_tokens for plan in plans),
        cpu_s=spent[0],
        memory_mb=memory_mb,
    )


async def plain_share(student: Simulator, plans: list[Plan], tok_s: float) -> float:
    """Return the share of capacity that equally many plain streams use, without a proxy."""
    seconds = await together(plain_stream(student, plan) for plan in plans)
    await student.reset()
    return decoding_s(plans, tok_s) / sum(seconds)


def decoding_s(plans: list[Plan], tok_s: float) -> float:
    """Return the seconds of decoding of all streams together."""
    return sum(plan.num_tokens for plan in plans) / tok_s
