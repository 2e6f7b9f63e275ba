"""Every error that stepahead raises on purpose.

    StepaheadError
     +-- UsageError            what was asked for cannot be done (also a ValueError)
     |    +-- CutError         the model cannot be cut, or not there
     +-- TrainingError         training had begun and cannot go on (also a RuntimeError)
          +-- MessageError     a message that does not fit: its edge, step, shape or dtype
          +-- LabelError       a label outside the classes
          +-- NonFiniteError   NaN or infinity in an activation or a gradient
          +-- LinkError        a link between two workers cannot be used any more
          |    +-- FrameError        what came over it is not a message, or not the next one
          |    +-- LinkTimeoutError  nothing came, or nothing was taken, for too long (also a TimeoutError)
          |    +-- LinkClosedError   this end was closed
          |    +-- PeerEndedError    the other end was closed: nothing more will come
          |    +-- PeerGoneError     the other end is gone without having been closed
          +-- WorkerLostError  a worker process died

Each message is one sentence: what is wrong, both values, and where there is one, the line to type.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class StepaheadError(Exception):
    """The root: catch it to catch all of them."""


class UsageError(StepaheadError, ValueError):
    """What was asked for cannot be done."""


class CutError(UsageError):
    """The model cannot be cut, or not there."""


class TrainingError(StepaheadError, RuntimeError):
    """Training had begun and cannot go on."""


class MessageError(TrainingError):
    """A message that does not fit: its edge, step, shape or dtype."""


class LabelError(TrainingError):
    """A label outside the classes that the signal was made for."""


class NonFiniteError(TrainingError):
    """NaN or infinity in an activation or a gradient."""


class LinkError(TrainingError):
    """A link between two workers cannot be used any more."""


class FrameError(LinkError):
    """What came over a link is not a message, or not the one whose turn it is."""


class LinkTimeoutError(LinkError, TimeoutError):
    """Nothing came, or nothing was taken, for too long."""


class LinkClosedError(LinkError):
    """This end of the link was closed."""


class PeerEndedError(LinkError):
    """The other end was closed: nothing more will come."""


class PeerGoneError(LinkError):
    """The other end is gone without having been closed: its process died."""


class WorkerLostError(TrainingError):
    """A worker process died."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the tail of an error message: the nearest known word, or all of them."""
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known are: {', '.join(known)}"
