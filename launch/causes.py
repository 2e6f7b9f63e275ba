"""Which spans are useful and which are tax, what idle time is idle for, and how it is called; colours. No torch."""

from __future__ import annotations

__all__ = [
    "CAUSES",
    "CAUSE_HEADS",
    "CAUSE_WORDS",
    "IDLE_COLOUR",
    "TAX_COLOUR",
    "TAX_SPANS",
    "USEFUL_COLOUR",
    "USEFUL_SPANS",
    "WAITS",
]

USEFUL_SPANS = ("forward", "backward", "optimizer")
TAX_SPANS = ("predict", "learn", "replay")
WAITS = ("wait_input", "wait_credit", "wait_gradient")
CAUSES = (*WAITS, "link", "other")
CAUSE_WORDS = {
    "wait_input": "a batch",
    "wait_credit": "room to send",
    "wait_gradient": "a gradient",
    "link": "copying",
    "other": "other things",
}
"""It is idle for .."""
CAUSE_HEADS = {
    "wait_input": "no batch",
    "wait_credit": "no room",
    "wait_gradient": "no gradient",
    "link": "copying",
    "other": "other",
}
USEFUL_COLOUR, TAX_COLOUR, IDLE_COLOUR = "#56b4e9", "#e69f00", "bright_black"
"""From the set of Okabe and Ito, which people who see few colours can tell apart; each also has a shape."""
