"""Workers: the processes that run stages, and the links between them.

links                                       workers
channels    what a link is; one in memory   process     the process around a worker
wire        messages as bytes               place       where it runs
sharedmem   a link through shared memory    post        how it waits, and what it tells
ring        slots in shared memory          work        what it does: run a stage, feed the pipeline
parcels     a link over what carries them   loop        feeds a stage from its links
zeromq      parcels over ZeroMQ             feed        draws batches from the data
guard       who may connect to a port       control     the connection to the supervisor
distributed parcels over torch.distributed  failures    what it raised, and what was the cause
pairs       process groups of two           checkpoints weights on disk; files that are there whole
waiting     for several ends at once        memory      what a stage holds, in bytes
ends        which ends each worker has      heap        what is freed and wanted again
wiring      of which kind each link is      telemetry   what it notes for whoever looks
joining     makes a worker's ends           spans       where its time goes; queued, on a GPU
delays      ways that are to be slow        locked      torch's own schedules, in place of the loop;
                                            locked_stage is what they drive
ledger      what went through, for proofs   virtual     parts of a step that last as long as said
                                            samples     how far it is, written and read
"""

from .channels import LinkEnd, LinkStatistics, Receiver, Sender, memory_link
from .checkpoints import complete_snapshot, newest_snapshot, read_snapshot, save_stage, weights_sha256
from .control import SOCKET, Control, connect, listen
from .delays import Delay
from .ends import DATA, End, ends_of, stage_title, worker_names
from .failures import Failure, cause_of, failure_of, read_failure, write_failure
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
from .virtual import Pace, Paced
from .waiting import Waiter
from .wire import bytes_of
from .wiring import Choice, Wiring
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
    "Delay",
    "End",
    "Event",
    "Failure",
    "Feed",
    "Guard",
    "Lag",
    "Ledger",
    "LinkEnd",
    "LinkStatistics",
    "Links",
    "Loop",
    "Pace",
    "Paced",
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
    "failure_of",
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
    "write_failure",
    "write_whole",
]
