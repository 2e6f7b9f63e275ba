"""The supervisor: watches a run's workers, and ends the run: when all is done, when one is lost, when its user says so.

Our own launcher starts the workers itself (`start.py`) and may kill them. Under torchrun they are torchrun's; then this
runs in a process beside rank 0 and only watches. It learns of a death through a pidfd, the moment it happens.

It has one thread and starts none, so that workers can be forked from it.
"""

from __future__ import annotations

import math
import os
import selectors
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from stepahead.workers import (
    DATA,
    LINKS,
    SOCKET,
    SPANS,
    Failure,
    Telemetry,
    Wiring,
    cause_of,
    log_folder,
    read_failure,
    read_sample,
    stage_title,
    worker_names,
    write_failure,
)

from .folder import RunFolder
from .gantt import Moment
from .hosts import Host
from .interrupts import ASK_TO_STOP
from .matchmaker import Matchmaker
from .monitor import Sample
from .switchboard import Switchboard
from .watched import Watched

__all__ = ["ABANDON_AFTER", "KILL_AFTER", "Loss", "Outcome", "Supervisor"]

LOOK_EVERY = 0.25
"""Seconds between two looks at how far the workers are."""
CAUSE_WITHIN = 0.1
"""Seconds for whoever broke a link to be seen dead, before all that live are killed."""
ABANDON_AFTER, KILL_AFTER = 4.0, 8.0
"""Seconds after an interruption: until workers leave what is on its way, until they are killed."""
HOSTS_GRACE = 3.0
"""Seconds for which other hosts may still say why, when a run breaks down."""
BOUNCE = 0.3
"""Seconds in which a second Ctrl-C is taken for an echo of the first."""


@dataclass(frozen=True, slots=True)
class Loss:
    """A worker that died of itself."""

    worker: str
    status: int | None
    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended."""

    reason: Literal["done", "interrupted", "failed", "worker lost"]
    losses: tuple[Loss, ...] = ()
    failure: Failure | None = None


class Supervisor:
    """Watches one run.

    Args:
        folder: The run folder.
        listener: The socket in it.
        wiring: Of its links.
        say: Prints a line for people.
        signals: Yields a byte for each signal that asks to stop.
        hosts: Further ones, where workers are too.
    """

    def __init__(
        self,
        folder: RunFolder,
        listener: socket.socket,
        wiring: Wiring,
        say: Callable[[str], None],
        signals: socket.socket | None = None,
        hosts: Sequence[Host] = (),
    ) -> None:
        self.folder = folder
        self.workers = {name: Watched(name, 0, -1, ours=False, is_far=True) for host in hosts for name in host.names}
        self.evaluations: list[tuple[int, dict[str, float]]] = []
        """What each evaluation gave, and after how many steps."""
        self.missed = 0
        """How many spans were overwritten before they were read."""
        self._names = worker_names(wiring.stages)
        self._signals = signals
        self._say = say
        self._selector = selectors.DefaultSelector()
        self._switchboard = Switchboard(listener, wiring, self._selector)
        self._matchmaker = Matchmaker(wiring, self._tell)
        self._hosts = list(hosts)
        for host in hosts:
            self._selector.register(host.uplink, selectors.EVENT_READ)
        if signals is not None:
            self._selector.register(signals, selectors.EVENT_READ)
        self._interrupted_at: float | None = None
        self._asked = self._stopping = self._abandoned = False
        self._torn_down = self._never_met = False
        self._torn_down_at = math.inf
        self._lost: list[Loss] = []
        self._looked = time.monotonic()

    def watch(self, name: str, pid: int, *, ours: bool) -> None:
        """Take a worker under supervision."""
        if name in self.workers:
            return
        try:
            worker = self.workers[name] = Watched(name, pid, os.pidfd_open(pid), ours)
        except ProcessLookupError:  # it said hello and died
            self.workers[name] = Watched(name, pid, -1, ours, ended=True)
            self._lost.append(Loss(name, None, 0))
            self._tear_down()
        else:
            self._selector.register(worker.pidfd, selectors.EVENT_READ, data=worker)

    def looks(self) -> Iterator[None]:
        """Supervise until no worker is left, and yield from time to time and at the end, to look how far they are."""
        while not self._over:
            events = self._selector.select(LOOK_EVERY)
            dead = [key.data for key, _ in events if key.data is not None]  # what they said last can be read now
            self._hear_signals()
            for name, message, descriptors in self._switchboard.messages():
                self._take(name, message, descriptors)
            for host in list(self._hosts):
                self._hear_from(host)
            self._bury(dead)
            if self._asked:  # after the dead: torchrun tells the others to end then
                self.interrupt()
            self._keep_deadlines()
            if time.monotonic() - self._looked >= LOOK_EVERY:
                self._looked = time.monotonic()
                self._look_for_stopped()
                for host in list(self._hosts):
                    self._hear_early(host)
                yield
        yield

    def samples(self, now: float, gpus: Sequence[object] | None = None) -> list[Sample | None]:
        """Return what each stage says of itself, with what its GPU says."""
        names = [name for name in self._names if name != DATA]
        read = gpus or [None] * len(names)
        return [self._sample(self.workers.get(name), now, gpu) for name, gpu in zip(names, read, strict=True)]

    def moments(self) -> list[list[Moment]]:
        """Return the spans of each stage since the last time, as far as they are kept."""
        return [self._moments(self.workers.get(name)) for name in self._names if name != DATA]

    @property
    def expected(self) -> int | None:
        """How many steps there will be, as soon as the data process knows."""
        data = self.workers.get(DATA)
        return int(data.telemetry["expected"]) or None if data and data.telemetry else None

    def stop(self) -> None:
        """Let the run end as if its data had."""
        if not self._stopping:
            self._stopping = True
            self._tell("stop", DATA)

    def interrupt(self) -> None:
        """End the run in order."""
        if self._interrupted_at is not None or self._torn_down:
            return
        self._interrupted_at = time.monotonic()
        self._say("interrupted: the workers finish what is on its way and save their weights (again: stop at once)")
        self.stop()

    def outcome(self) -> Outcome:
        """Return how the run ended, once `looks` is through."""
        cause = cause_of(failure for failure in map(self._failure_of, self._names) if failure is not None)
        if self._interrupted_at is not None:
            return Outcome(reason="interrupted")
        if self._lost:
            return Outcome(reason="worker lost", losses=tuple(self._lost), failure=cause)
        if cause is not None:
            return Outcome(reason="failed", failure=cause)
        return Outcome(reason="done")

    def close(self) -> None:
        """Kill whatever of ours is left, and let go of everything."""
        self._tear_down()
        for worker in self.workers.values():
            if self._never_met and worker.pidfd >= 0 and not worker.ended:  # it waits in a library for who never comes
                signal.pidfd_send_signal(worker.pidfd, signal.SIGKILL)
            if worker.ours and not worker.ended:
                self._reap(worker)
            if worker.pidfd >= 0:
                os.close(worker.pidfd)
            if worker.telemetry is not None:
                worker.telemetry.close()
        for host in self._hosts:
            host.close()
        self._switchboard.close()
        self._selector.close()
        (self.folder.path / SOCKET).unlink(missing_ok=True)
        shutil.rmtree(self.folder.path / LINKS, ignore_errors=True)

    def _sample(self, worker: Watched | None, now: float, gpu: object) -> Sample | None:
        if worker is None or worker.telemetry is None:
            return None
        return {**read_sample(worker.telemetry), "time": now, "life": worker.life, "gpu": gpu}

    def _moments(self, worker: Watched | None) -> list[Moment]:
        if worker is None or worker.telemetry is None:
            return []
        events, worker.seen, lost = worker.telemetry.read_events(worker.seen)
        self.missed += lost
        return [(event.begin, event.end, event.step, SPANS[event.span]) for event in events]

    @property
    def _over(self) -> bool:
        """Whether nothing more is to come; a process that is not ours may outlive its work."""
        late = time.monotonic() - self._torn_down_at > HOSTS_GRACE
        return all(
            worker.ended
            or (not worker.ours and (worker.failed or worker.summary is not None))
            or ((worker.is_far or self._never_met) and late)
            for worker in self.workers.values()
        )

    @property
    def _is_explained(self) -> bool:
        """Whether there is a cause for the run's end: a broken link is none, but follows from one."""
        failures = map(self._failure_of, self._names)
        return bool(self._lost) or any(failure.kind != "link" for failure in failures if failure is not None)

    def _failure_of(self, name: str) -> Failure | None:
        return read_failure(log_folder(self.folder.path, name))

    def _take(self, name: str, message: Mapping[str, Any], descriptors: Sequence[int]) -> None:
        """Take note of what a worker says."""
        kind = message["kind"]
        if kind == "hello":
            self.watch(name, message["pid"], ours=False)
            if descriptors:
                self.workers[name].telemetry = Telemetry(descriptor=descriptors[0])
            self._matchmaker.join(name)
            if self._stopping and name == DATA:
                self._tell("stop", DATA)
        elif kind == "listening":
            self._matchmaker.listen(message["link"], message["address"])
        elif kind == "ended":
            self._bury([self.workers[name]])
        elif kind == "state":
            self._note_state(self.workers[name], message["stopped"], message["pid"])
        elif kind == "interrupted":
            self._asked = True
        elif kind == "evaluated":
            self.evaluations.append((message["step"], dict(message["figures"])))
        elif kind == "finished":
            self.workers[name].summary = message["summary"]
        elif kind == "failed":
            self.workers[name].failed = True

    def _hear_from(self, host: Host) -> None:
        """Take note of what the workers of another host say, and of its end."""
        gone = host.gone
        for name, message in host.messages():
            if message["kind"] == "hello":
                self.workers[name].telemetry = host.telemetry[name]
            self._take(name, message, ())
        if gone:
            self._selector.unregister(host.uplink)
            self._hosts.remove(host)
            host.close()
            unfinished = [worker for worker in map(self.workers.__getitem__, host.names) if not worker.ended]
            if any(worker.summary is None for worker in unfinished):
                self._say(f"host {host.address} is gone, or the way to it is cut")
            self._bury(unfinished)

    def _hear_early(self, host: Host) -> None:
        """End the run if the workers of another host will never come."""
        failure = host.early_failure()
        if failure is not None and not self._never_met:
            self._never_met = True
            log_folder(self.folder.path, failure.worker).mkdir(parents=True, exist_ok=True)
            write_failure(log_folder(self.folder.path, failure.worker), failure)
            self._say(f"host {host.address} cannot take part: {failure.message}")
            self._tear_down()

    def _tell(self, kind: str, *names: str, **fields: Any) -> None:
        """Send a word to some workers, wherever they are, or to all."""
        self._switchboard.tell(kind, *names, **fields)
        for host in self._hosts:
            host.tell(kind, *names, **fields)

    def _hear_signals(self) -> None:
        if self._signals is None:
            return
        with suppress(BlockingIOError):
            for number in filter(ASK_TO_STOP.__contains__, self._signals.recv(16)):
                first = self._interrupted_at
                if first is None:
                    self.interrupt()
                elif number == signal.SIGINT and time.monotonic() - first > BOUNCE:  # some wrappers pass it on again
                    self._tear_down()

    def _bury(self, dead: list[Watched]) -> None:
        """Take note of who died, and end the run if somebody did so before being finished."""
        for worker in dead:
            if not worker.is_far:
                self._selector.unregister(worker.pidfd)
            self._reap(worker)
            follows = worker.killed or (self._torn_down and self._is_explained)
            if worker.summary is None and not follows and self._failure_of(worker.name) is None:
                self._lost.append(Loss(worker.name, worker.status, worker.steps))
        if any(worker.summary is None for worker in dead):
            if not (self._torn_down or self._is_explained):
                self._bury(self._dying())
            self._tear_down()

    def _dying(self) -> list[Watched]:
        """Return who dies within a moment: a link breaks a little before the process behind it is seen to be dead."""
        deadline = time.monotonic() + CAUSE_WITHIN
        while (left := deadline - time.monotonic()) > 0:
            if dead := [key.data for key, _ in self._selector.select(left) if key.data is not None]:
                return dead
        return []

    def _reap(self, worker: Watched) -> None:
        """Hear how a worker ended; of one that is not ours nobody tells."""
        worker.ended = True
        if worker.ours and (result := os.waitid(os.P_PIDFD, worker.pidfd, os.WEXITED)) is not None:
            worker.status = result.si_status if result.si_code == os.CLD_EXITED else -result.si_status

    def _tear_down(self) -> None:
        """Kill what is ours and still lives; who died of itself until now has been taken note of."""
        if not self._torn_down:
            self._torn_down = True
            self._torn_down_at = time.monotonic()
            for worker in self.workers.values():
                if worker.ours and not worker.ended:
                    worker.killed = True
                    signal.pidfd_send_signal(worker.pidfd, signal.SIGKILL)

    def _look_for_stopped(self) -> None:
        """Tell a stopped worker from a busy one, by its state."""
        for worker in (worker for worker in self.workers.values() if not worker.is_far):
            if worker.turned():
                self._say_state(worker, worker.pid)

    def _note_state(self, worker: Watched, stopped: bool, pid: int) -> None:
        """Take note that a worker on another host is stopped, or is not any more."""
        worker.hear(stopped)
        self._say_state(worker, pid)

    def _say_state(self, worker: Watched, pid: int) -> None:
        if worker.stopped:
            there = " on its host" if worker.is_far else ""
            what = f"{stage_title(worker.name)} is stopped (by a signal, at about step {worker.steps})"
            self._say(f"{what}; kill -CONT {pid}{there} lets it go on")
        else:
            self._say(f"{stage_title(worker.name)} is no longer stopped")

    def _keep_deadlines(self) -> None:
        if self._interrupted_at is None:
            return
        waited = time.monotonic() - self._interrupted_at
        if waited > KILL_AFTER:
            self._tear_down()
        elif waited > ABANDON_AFTER and not self._abandoned:
            self._abandoned = True
            self._tell("abandon")

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
