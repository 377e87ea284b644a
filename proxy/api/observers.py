"""Follows a trajectory for its client: sends what becomes certain, or waits for the end."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field

from proxy.api.shapes import chosen
from proxy.api.sse import ChunkWriter, named_event
from proxy.core.types import Chosen, Judged, Notice
from proxy.engine.usage import Usage


class TextObserver:
    """Ignores text and notices, for answers that are sent whole."""

    has_begun = False
    """Whether the client was sent something of the choice."""
    usage = Usage()
    """The trajectory's cost so far."""

    def text(self, text: str) -> None:
        """Not sent yet."""

    def notice(self, notice: Notice) -> None:
        """Not sent at all."""


@dataclass(slots=True)
class StreamObserver(TextObserver):
    """Writes one choice's text, and its decisions if they were requested."""

    index: int
    writer: ChunkWriter
    put: Callable[[bytes], None]
    events: bool
    has_begun: bool = False
    usage: Usage = field(default_factory=Usage)

    def begin(self) -> None:
        """Open the choice. Called only when there is something to send, so that a request that
        fails at once is answered with a status and not with a broken stream.
        """
        if not self.has_begun:
            self.has_begun = True
            if role := self.writer.role(self.index, self.usage):
                self.put(role)

    def text(self, text: str) -> None:
        self.begin()
        self.put(self.writer.text(self.index, text, self.usage))

    def notice(self, notice: Notice) -> None:
        if not self.events:
            return
        self.begin()
        if isinstance(notice, Judged):
            step = asdict(notice.step)
            # Its place in the text may not be certain yet; the trace at the end has it.
            del step["start"], step["end"]
            self.put(named_event("motab.step", {"index": self.index, "step": notice.index, **step}))
        elif isinstance(notice, Chosen):
            one = {"index": self.index, "chosen": chosen(notice)}
            self.put(named_event("motab.chosen", one))
        else:
            cut = {"breach": notice.breach, "bifurcation": notice.bifurcation}
            self.put(named_event("motab.breach", {"index": self.index, **cut}))
