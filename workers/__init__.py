"""Workers: the processes that run stages, and the links between them.

wire        messages as bytes               control     a worker's connection to its supervisor
channels    what a link is; one in memory   process     the process around a worker
sharedmem   a link through shared memory    work        what workers do: run a stage, feed the pipeline
ring        slots in shared memory          checkpoints weights on disk
post        where a worker runs and waits   failures    what a worker raised, and what was the cause
ends        which ends each worker has      waiting     for several ends at once
loop        feeds a stage from its links    telemetry   what a worker notes for whoever looks
feed        draws batches from the data     spans       where a worker's time goes
memory      what a stage holds, in bytes    samples     how far a worker is, written and read
heap        what is freed and wanted again  ledger      what went through the links, for proofs
files       files that are there whole
"""

from .channels import LinkEnd, LinkStatistics, Receiver, Sender, memory_link
from .checkpoints import complete_snapshot, newest_snapshot, read_snapshot, save_stage, weights_sha256
from .control import SOCKET, Control, connect, listen
from .ends import DATA, End, ends_of, stage_title, worker_names
from .failures import Failure, cause_of, read_failure
from .feed import Batches, Feed, drawing_apart, seed_everything
from .files import write_whole
from .guard import Guard
from .joining import LINKS
from .ledger import Ledger, check_ledgers
from .loop import Lag, Links, Loop, Progress
from .packing import pack, unpack
from .parcels import Carrier
from .place import Place, Site, log_folder
from .post import Post
from .process import leave_failure, run_worker
from .samples import read_sample
from .sharedmem import SharedReceiver, SharedSender, make_sockets
from .spans import NAMES as SPANS
from .spans import Spans, Wait
from .telemetry import Event, Telemetry
from .waiting import Waiter
from .wire import bytes_of
from .wiring import Choice, LinkKind, Wiring
from .work import StageWork, feed_pipeline, run_stage
from .zeromq import ZeroCarrier

__all__ = [
    "DATA",
    "LINKS",
    "SOCKET",
    "SPANS",
    "Batches",
    "Carrier",
    "Choice",
    "Control",
    "End",
    "Event",
    "Failure",
    "Feed",
    "Guard",
    "Lag",
    "Ledger",
    "LinkEnd",
    "LinkKind",
    "LinkStatistics",
    "Links",
    "Loop",
    "Place",
    "Post",
    "Progress",
    "Receiver",
    "Sender",
    "SharedReceiver",
    "SharedSender",
    "Site",
    "Spans",
    "StageWork",
    "Telemetry",
    "Wait",
    "Waiter",
    "Wiring",
    "ZeroCarrier",
    "bytes_of",
    "cause_of",
    "check_ledgers",
    "complete_snapshot",
    "connect",
    "drawing_apart",
    "ends_of",
    "feed_pipeline",
    "leave_failure",
    "listen",
    "log_folder",
    "make_sockets",
    "memory_link",
    "newest_snapshot",
    "pack",
    "read_failure",
    "read_sample",
    "read_snapshot",
    "run_stage",
    "run_worker",
    "save_stage",
    "seed_everything",
    "stage_title",
    "unpack",
    "weights_sha256",
    "worker_names",
    "write_whole",
]
