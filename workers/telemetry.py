"""Telemetry: shared memory in which a worker notes what it does and how far it is, for whoever looks.

figures   steps, loss, queues ..: 8 bytes each, overwritten in place
totals    nanoseconds by span: they only grow, so whoever looks seldom misses none
events    the last spans one by one, in a ring: (begin, end, step, number, span)

A worker only writes, and never waits; a reader may look at any time. Events that may have been overwritten while they
were read are left out.
"""

from __future__ import annotations

import mmap
import os
import struct
from contextlib import suppress
from dataclasses import dataclass

from stepahead.pipeline import UsageError

__all__ = ["EVENTS_KEPT", "Event", "Telemetry"]

FIGURES = (
    "begun",
    "ended",
    "doing",
    "since",
    "written",
    "steps",
    "samples",
    "counted",
    "expected",
    "skipped",
    "unanswered",
    "held",
    "lag_p50",
    "lag_max",
    "memory",
    "in_waiting",
    "in_capacity",
    "out_waiting",
    "out_capacity",
)
"""Whole numbers: when it began, ended and was done with its last step (ns), what it does since when (ns), how many
events, steps and samples there were, and so on; of the data process, how many steps there will be, once it knows."""
REALS = ("loss", "cosine", "relative_error", "sign_error", "gradient_norm", "missed", "inputs_error", "windows_cosine")
INDEX = {name: index for index, name in enumerate((*FIGURES, *REALS))}
TOTALS = 64
"""Where the totals are, in numbers of 8 bytes."""
PAGE = mmap.PAGESIZE
EVENT = struct.Struct("<qqIIHxxxxxx")
"""Padded to 32 bytes."""
EVENTS_KEPT = 4096
NOTHING = -1
"""What it does between spans."""
WRITTEN = INDEX["written"]
LOW = 0xFFFFFFFF
TIMES = ("begun", "ended", "since", "counted")
"""Figures that are times of the machine's clock; 0 for none."""


@dataclass(frozen=True, slots=True)
class Event:
    """One span as it was."""

    begin: int
    """In nanoseconds of the machine's monotonic clock, which all its processes share."""
    end: int
    step: int
    span: int
    """Its place among the names of spans."""


class Telemetry:
    """The memory, from either side.

    Args:
        events: How many events it keeps; none if that is 0.
        descriptor: Of the memory to read; otherwise new memory is made, shared if `shared`.
    """

    def __init__(self, events: int = 0, *, shared: bool = False, descriptor: int | None = None) -> None:
        self.descriptor = descriptor
        if descriptor is not None:
            self._map = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        elif shared:
            self.descriptor = _allocate(PAGE + events * EVENT.size)
            self._map = mmap.mmap(self.descriptor, 0)
        else:
            self._map = mmap.mmap(-1, PAGE + events * EVENT.size)
        self.events = (len(self._map) - PAGE) // EVENT.size
        page = memoryview(self._map)[:PAGE]
        self.numbers: memoryview[int] = page.cast("q")
        self._reals: memoryview[float] = page.cast("d")
        if descriptor is None:
            self.numbers[INDEX["doing"]] = NOTHING
            for name in REALS:
                self[name] = float("nan")

    def __getitem__(self, name: str) -> float:
        return (self._reals if name in REALS else self.numbers)[INDEX[name]]

    def __setitem__(self, name: str, value: float) -> None:
        if name in REALS:
            self._reals[INDEX[name]] = value
        else:
            self.numbers[INDEX[name]] = int(value)

    def totals(self, spans: int, now: int) -> list[int]:
        """Return the nanoseconds of each of so many spans, with what the one that is open has taken until `now`."""
        totals = list(self.numbers[TOTALS : TOTALS + spans])
        doing, since = self.numbers[INDEX["doing"]], self.numbers[INDEX["since"]]
        if 0 <= doing < spans:
            totals[doing] += max(now - since, 0)
        return totals

    def note(self, begin: int, end: int, step: int, span: int) -> None:
        """Write an event."""
        number = self.numbers[WRITTEN]
        place = PAGE + number % self.events * EVENT.size
        EVENT.pack_into(self._map, place, begin, end, step, number & LOW, span)
        self.numbers[WRITTEN] = number + 1

    def read_events(self, after: int) -> tuple[list[Event], int, int]:
        """Return the events from number `after` on, the number to go on with, and how many have been overwritten."""
        written = self.numbers[WRITTEN]
        first = max(after, written - self.events)
        found: list[Event] = []
        for number in range(first, written):
            begin, end, step, low, span = EVENT.unpack_from(self._map, PAGE + number % self.events * EVENT.size)
            if low == number & LOW:
                found.append(Event(begin, end, step, span))
        overwritten = self.numbers[WRITTEN] - self.events + 1  # while they were read, the one in the making included
        found = found[max(overwritten - first, 0) :]
        return found, written, written - after - len(found)

    def copy(self, after: int, ahead: int = 0) -> tuple[bytes, bytes, int]:
        """Return what `paste` takes, of events those from number `after` on, and the number to go on with.

        All times are `ahead` nanoseconds later: those of another machine's clock.
        """
        figures = bytearray(self._map[:PAGE])
        numbers = memoryview(figures).cast("q")
        for index in map(INDEX.__getitem__, TIMES):
            numbers[index] += ahead if numbers[index] else 0
        written = numbers[WRITTEN]
        events = b"".join(self._event(number, ahead) for number in range(max(after, written - self.events), written))
        return bytes(figures), events, written

    def paste(self, figures: bytes, events: bytes) -> None:
        """Be as the telemetry was that this was copied from."""
        for event in (events[at : at + EVENT.size] for at in range(0, len(events), EVENT.size)):
            place = PAGE + EVENT.unpack(event)[3] % self.events * EVENT.size
            self._map[place : place + EVENT.size] = event
        self._map[:PAGE] = figures

    def _event(self, number: int, ahead: int) -> bytes:
        begin, end, *rest = EVENT.unpack_from(self._map, PAGE + number % self.events * EVENT.size)
        return EVENT.pack(begin + ahead, end + ahead, *rest)

    def close(self) -> None:
        """Let go of the memory here."""
        self.numbers.release()
        self._reals.release()
        with suppress(BufferError):
            self._map.close()
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


def _allocate(size: int) -> int:
    descriptor = os.memfd_create("stepahead-telemetry", os.MFD_CLOEXEC)
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        os.close(descriptor)
        what = f"no memory for telemetry: {size // 1024} KiB cannot be had ({error.strerror})"
        raise UsageError(f"{what}; --set telemetry=false does without most of it") from error
    return descriptor
