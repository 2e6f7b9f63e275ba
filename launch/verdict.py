"""What a comparison says in words: which schedule comes to the loss first, why, and what would change it."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import mean

from .comparison import CEILING, DECOUPLED, LATE, SINGLE, Comparison, Row

__all__ = ["verdict"]

CLOSE = 1.03
"""Below this ratio two are as good as level."""
CROWDED = 0.9
"""A share below which other work had the cores too often."""


def verdict(comparison: Comparison) -> list[str]:
    """Return sentences, the answer first."""
    return [
        *_who_is_first(comparison),
        *_why(comparison),
        *_what_would_change_it(comparison),
        *_reservations(comparison),
    ]


def _who_is_first(comparison: Comparison) -> Iterator[str]:
    first, target = comparison.first, comparison.target
    if first is None:
        fastest = max(comparison.racing, key=lambda row: row.rate or 0.0, default=None)
        if fastest is None:
            yield "no schedule could be measured"
        elif target is None:
            seen = any(curve for row in comparison.racing for curve in row.curves)
            what = "the loss did not fall in all of them, so there is none to race to: give more --seconds"
            yield f"{fastest.name} makes the most samples a second; {what if seen else 'no loss was seen'}"
        else:
            what = f"none came to a loss of {target:.4g} in the time that it had: give more --seconds"
            yield f"{what}; {fastest.name} makes the most samples a second"
        return
    seconds = first.seconds_to(target)
    others = [(row.seconds_to(target), row) for row in comparison.racing if row is not first]
    timed = sorted(((taken, row) for taken, row in others if taken is not None), key=lambda entry: entry[0])
    said = f"{first.name} comes to a loss of {target:.4g} first, after {seconds:.1f} s"
    if not timed:
        alone = len(comparison.racing) == 1
        yield f"{said}; no other schedule {'was measured' if alone else 'does'}"
        return
    taken, second = timed[0]
    near = "level with" if seconds and taken / seconds < CLOSE else "then"
    yield f"{said}; {near} {second.name}, after {taken:.1f} s ({taken / max(seconds or 0.0, 1e-9):.2f}x)"


def _why(comparison: Comparison) -> Iterator[str]:
    first, best, decoupled = comparison.first, comparison.best_locked, comparison.row(DECOUPLED)
    if decoupled is not None and best is not None:
        ratio = comparison.ratio(decoupled, best) or 0.0
        shares = f"{_share(decoupled.useful)} of their time useful, under {best.name} {_share(best.useful)}"
        yield f"decoupled makes {ratio:.2f} times the samples a second of {best.name}, the best locked one: {shares}"
        tax, bubble, even = comparison.predictor_tax, comparison.bubble, comparison.break_even
        if tax is not None and bubble is not None and even is not None:
            pays = "pays" if tax < even else "does not pay"
            yield (
                f"what it does besides (guesses, second passes) costs {tax:.0%} of a stage's own work, and "
                f"{best.name} has a bubble of {bubble:.0%}: that {pays} (break-even at {max(even, 0.0):.0%})"
            )
    if (
        first is not None
        and decoupled is not None
        and first is not decoupled
        and (decoupled.rate or 0) > (first.rate or 0)
    ):
        more = _samples_ratio(decoupled, first, comparison.target)
        often = f" {more:.1f} times as many" if more else " more"
        yield f"decoupled is faster, and needs{often} samples to the same loss: its gradients are guesses"
    if first is not None and decoupled is None:
        last = min(
            (row for row in comparison.racing if row is not first), key=lambda row: row.rate or 0.0, default=None
        )
        beside = "" if last is None else f", under {last.name} {_share(last.useful)}"
        yield f"under {first.name} stages are useful {_share(first.useful)} of their time{beside}"
    if first is not None and first.schedule in LATE:
        yield f"{first.schedule} has no bubble and no predictor; its gradients are true, and late"


def _what_would_change_it(comparison: Comparison) -> Iterator[str]:
    first, decoupled = comparison.first, comparison.row(DECOUPLED)
    tax, even = comparison.predictor_tax, comparison.break_even
    if decoupled is not None and tax is not None and even is not None and tax > even:
        cheaper = "a cheaper predictor (low-rank, every=2, rows=1/4), a truth less often (--truth-every 4)"
        yield f"what would change it: {cheaper}, slower links, more stages"
    elif first is not None and first is decoupled:
        yield "what would change it: larger batches that can be cut into more micro-batches, faster links, fewer stages"
    elif decoupled is not None and (first is None or (decoupled.rate or 0.0) > (first.rate or 0.0)):
        yield "what would change it: better guesses (--truth true-up --truth-every 1, another predictor), slower links"
    elif first is not None and decoupled is None:
        less = "less memory for what is kept, longer lags" if first.schedule in LATE else "slower links, more stages"
        yield f"what would change it: {less}; decoupled was not measured"
    ceiling = comparison.row(CEILING)
    if ceiling is not None and decoupled is not None:
        yield f"decoupled is at {comparison.ratio(decoupled, ceiling) or 0.0:.2f} of the ceiling"
    single, lead = comparison.row(SINGLE), max(comparison.racing, key=lambda row: row.rate or 0.0, default=None)
    if single is not None and lead is not None and (single.rate or 0.0) > (lead.rate or 0.0):
        yield "one process alone makes more samples a second than any pipeline here: the stages are too small to part"


def _reservations(comparison: Comparison) -> Iterator[str]:
    crowded = [row.name for row in comparison.rows if row.contention is not None and row.contention < CROWDED]
    if crowded:
        again = "more cores, or smaller layers, would tell" if comparison.virtual else "measure again"
        yield f"other work had the cores for a tenth of the time or more ({', '.join(crowded)}): {again}"
    if comparison.virtual:
        yield "virtual: stages last as long as they were said to; losses and links are real, absolute times are not"


def _share(shares: list[float]) -> str:
    return f"{mean(shares):.0%}" if shares else "?"


def _samples_ratio(row: Row, other: Row, loss: float | None) -> float | None:
    """Return how many times the samples of another row a row needs to come to a loss."""
    needed = [
        next((samples for _, samples, value in each.curves[0] if loss is not None and value <= loss), None)
        if each.curves
        else None
        for each in (row, other)
    ]
    return needed[0] / needed[1] if needed[0] and needed[1] else None
