"""Two recurrent networks in two processes: one ticks with every digit, the other with every fourth.

stepahead train examples/two_clocks.py

The fast one counts odd digits, and sends a message every T steps; the slow one counts threes from messages, over T x T
steps, and is asked only then. What a message is worth the fast one guesses: it never waits.
"""

from __future__ import annotations

from functools import partial

from torch.optim import Adam

from stepahead.launch import Job, digits
from stepahead.launch.clocks import clock_graph, count_windows, fast_accuracy, slow_accuracy, slow_loss
from stepahead.pipeline import synthetic

PIXELS = 64


def job(ticks: int = 4, width: int = 64, batch: int = 64, sequences: int = 1000, learning_rate: float = 1e-3) -> Job:
    data = digits()
    guess = synthetic("mlp", hidden=width, optimizer=partial(Adam, lr=learning_rate))
    return Job(
        name="two-clocks",
        model=clock_graph(PIXELS, ticks, width, guess, guess),
        data=partial(count_windows, data.train, ticks, batch, sequences),
        test=list(count_windows(data.test, ticks, 256, 4, 0)),
        loss=slow_loss,
        metrics={"odd": fast_accuracy, "threes": partial(slow_accuracy, ticks)},
        optimizer=partial(Adam, lr=learning_rate),
        signal=guess,
        stages=2,
        epochs=1,
        evaluate_every=400,
    )
