"""Two recurrent networks in two processes: one ticks with every digit, the other with every fourth.

stepahead train examples/two_clocks.py --cut slow

The fast one counts odd digits, and sends a message every T steps; the slow one counts threes from messages, over T x T
steps. What a message is worth the fast one guesses: it waits for no gradient.
"""

from __future__ import annotations

from functools import partial

from torch.optim import Adam

from stepahead.launch import Job, digits
from stepahead.launch.two_clocks import clock_graph, count_windows, fast_accuracy, labels_of, last_loss, slow_accuracy
from stepahead.pipeline import synthetic

PIXELS = 64


def job(ticks: int = 4, width: int = 64, batch: int = 64, sequences: int = 1000, learning_rate: float = 5e-4) -> Job:
    data = digits()
    learns = partial(Adam, lr=6 * learning_rate)  # a guess has to keep up with what it is about
    later = synthetic("mlp", hidden=width, optimizer=learns)  # what comes after a window: nobody knows the labels there
    return Job(
        name="two-clocks",
        model=clock_graph(PIXELS, ticks, width, later, later),
        data=partial(count_windows, data.train, ticks, batch, sequences),
        test=list(count_windows(data.test, ticks, 256, 4, 0)),
        loss=partial(last_loss, ticks),
        metrics={"odd": partial(fast_accuracy, ticks), "threes": partial(slow_accuracy, ticks)},
        optimizer=partial(Adam, lr=learning_rate),
        signal=synthetic("mlp", hidden=width, classes=labels_of(ticks), optimizer=learns),
        classes=labels_of(ticks),
        stages=2,
        epochs=1,
        evaluate_every=400,
    )
