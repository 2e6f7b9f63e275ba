"""Where the time of a stage goes, in milliseconds a step, from the spans that were seen. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .causes import TAX_SPANS, USEFUL_SPANS, WAITS
from .gantt import Moment

__all__ = ["Breakdown", "break_down"]


@dataclass(frozen=True, slots=True)
class Breakdown:
    """Where the time of a stage goes, in milliseconds a step."""

    spans: Mapping[str, float]
    wall: float

    @property
    def useful(self) -> float:
        return sum(self.spans.get(name, 0.0) for name in USEFUL_SPANS)

    @property
    def tax(self) -> float:
        return sum(self.spans.get(name, 0.0) for name in TAX_SPANS)

    @property
    def busy(self) -> float:
        """Computing, whatever for."""
        return self.useful + self.tax

    @property
    def idle(self) -> dict[str, float]:
        """By cause, the largest first."""
        causes = {name: self.spans.get(name, 0.0) for name in (*WAITS, "send")}
        causes["other"] = max(self.wall - self.busy - sum(causes.values()), 0.0)
        return dict(sorted(causes.items(), key=lambda item: -item[1]))


def break_down(moments: Sequence[Sequence[Moment]]) -> list[Breakdown] | None:
    """Return where the time of each stage goes, over the steps that all of them were seen to make whole."""
    steps = [{moment[2] for moment in of_stage if moment[3] == "forward"} for of_stage in moments]
    common = sorted(set.intersection(*steps)) if steps else []
    if len(common) < 2:
        return None
    return [_of_stage(of_stage, common[0], common[-1]) for of_stage in moments]


def _of_stage(moments: Sequence[Moment], first: int, last: int) -> Breakdown:
    """From the forward pass of the first step to that of the last one: as many steps as are between."""
    forward = [moment for moment in moments if moment[3] == "forward"]
    starts = {moment[2]: moment[0] for moment in reversed(forward)}  # the first piece, if there are several
    begin, end, steps = starts[first], starts[last], last - first
    spans: dict[str, float] = {}
    for start, stop, _, name in moments:
        inside = min(stop, end) - max(start, begin)
        if inside > 0:
            spans[name] = spans.get(name, 0.0) + inside / 1e6 / steps
    return Breakdown(spans, (end - begin) / 1e6 / steps)
