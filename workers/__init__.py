"""Workers: the processes that run stages, and the links between them.

wire        messages as bytes            sharedmem   a link through shared memory
channels    what a link is; one in memory
"""

from .channels import LinkEnd, LinkStatistics, Receiver, Sender, Waiter, memory_link
from .sharedmem import SharedReceiver, SharedSender, make_sockets

__all__ = [
    "LinkEnd",
    "LinkStatistics",
    "Receiver",
    "Sender",
    "SharedReceiver",
    "SharedSender",
    "Waiter",
    "make_sockets",
    "memory_link",
]
