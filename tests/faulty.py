"""A job with a fault planted in one layer at one step: for the tests of what happens then."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from nets import CLASSES, adam
from torch import Tensor, nn

from stepahead.launch import Job
from stepahead.pipeline import Truth, accuracy

ENDLESS = 10**9


class Fault(nn.Module):
    """Does something at a step, and leaves the time at which it did it."""

    def __init__(self, act: str, step: int, note: str) -> None:
        super().__init__()
        self.act, self.step, self.note = act, step, Path(note)
        self.calls = 0

    def forward(self, h: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
            if self.calls == self.step + 1 and self.act != "none":
                self.note.write_text(f"{time.monotonic()} {os.getpid()}")
                return self.happen(h)
        return h

    def happen(self, h: Tensor) -> Tensor:
        launcher, me = os.getppid(), os.getpid()
        match self.act:
            case "kill":
                os.kill(me, signal.SIGKILL)
            case "abort":
                os.abort()
            case "exit":
                os._exit(7)
            case "stop":
                os.kill(me, signal.SIGSTOP)
            case "raise":
                raise ValueError("the layer has had enough")
            case "not finite":
                return h * float("nan")
            case "kill the launcher":
                os.kill(launcher, signal.SIGKILL)
            case "kill the group":
                os.killpg(os.getpgrp(), signal.SIGKILL)
            case "interrupt":
                os.kill(launcher, signal.SIGINT)
            case "interrupt and hang":
                os.kill(launcher, signal.SIGINT)
                time.sleep(3600)
            case _:
                pass
        return h


def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(epoch)
    for _ in range(50):
        yield torch.randn(16, 12, generator=generator), torch.randint(CLASSES, (16,), generator=generator)


def job(act: str = "none", stage: int = 0, step: int = 5, note: str = "", steps: int = ENDLESS) -> Job:
    """Three stages of three layers, the fault in the middle one of a stage."""
    layers: list[nn.Module] = []
    for index in range(3):
        fault = Fault(act, step, note) if index == stage else nn.ReLU()
        layers += [nn.Linear(12, 12), fault, nn.Tanh() if index < 2 else nn.Linear(12, CLASSES)]
    return Job(
        model=nn.Sequential(*layers),
        data=batches,
        test=list(batches(99))[:2],
        metrics={"accuracy": accuracy},
        loss=nn.CrossEntropyLoss(),
        optimizer=adam,
        classes=CLASSES,
        truth=Truth(),  # each batch once: its steps are counted by the fault
        stages=3,
        steps=steps,
    )


def faulty_data(act: str = "raise", note: str = "") -> Job:
    """The fault is in the data."""

    def data(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for step, batch in enumerate(batches(epoch)):
            if step == 5:
                Path(note).write_text(f"{time.monotonic()} {os.getpid()}")
                if act == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise ValueError("the data is bad")
            yield batch

    whole = job()
    return Job(model=whole.model, data=data, loss=whole.loss, optimizer=adam, classes=CLASSES, stages=3, steps=ENDLESS)
