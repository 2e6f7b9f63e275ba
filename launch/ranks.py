"""A run under torchrun: each rank is the worker of the stage of its number; rank 0 also starts what our launcher would.

On further hosts the first rank starts an outpost (`outpost.py`) for the workers there.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, replace
from functools import partial
from ipaddress import ip_address
from pathlib import Path

from rich.console import Console
from torch.distributed import DistNetworkError, DistStoreError

from stepahead.pipeline import UsageError
from stepahead.workers import DATA, Guard, Site, ZeroCarrier, failure_of, listen

from .config import Config, read_config
from .folder import RunFolder
from .hosts import Host
from .interrupts import stop_signals
from .monitor import Baseline
from .outpost import Outpost
from .plan import Plan, plan_run
from .rendezvous import Arrival, Torchrun
from .run import RunResult, end_before_it_began, find_baseline, open_folder, supervise
from .screen import say
from .showing import facts_of
from .start import fork, work_at
from .supervisor import Supervisor
from .trace import Tracer
from .uplink import Uplink
from .words import first_words

__all__ = ["train_under_torchrun"]

LEAST_SECRET = 16
"""Bytes: what is shorter could be guessed."""
SILENCE = 1.2
"""Seconds without a sign of life until a host is taken for dead."""
Finish = Callable[[RunResult], None]


def train_under_torchrun(torchrun: Torchrun, config: Config, console: Console, finish: Finish) -> int:
    """Be the worker of the stage that torchrun's rank says, and return the exit code."""
    if config.stages != torchrun.world_size:
        what = f"torchrun started {torchrun.world_size} processes for {config.stages} stages"
        raise UsageError(f"{what}; leave out --stages, or start as many")
    torchrun.arrive()
    if torchrun.rank > 0:
        return _follow(torchrun)
    arrivals = torchrun.arrivals()
    hosts = [arrival.node for arrival in arrivals]
    _check_addresses(arrivals)
    token = secrets.token_hex()
    plan = plan_run(_on_devices(config, arrivals), hosts, torchrun.node)
    plan = replace(plan, site=_site(torchrun, plan.config, token) if plan.is_on_several_hosts else None)
    folder = open_folder(plan)
    for line in first_words(plan, folder):
        say(console, line)
    try:
        with stop_signals() as signals:
            baseline = find_baseline(plan, folder, console, signals, named=True)
    except KeyboardInterrupt:
        result = end_before_it_began(plan, folder, console)
        finish(result)
        return result.exit_code
    helpers = _start_helpers(torchrun, arrivals, plan, folder, console, baseline, finish)
    mark = plan.site.guard.fingerprint if plan.site else ""
    torchrun.say("terms", [str(folder.path.resolve()), folder.config.read_text(), hosts, token, mark])
    return _work(torchrun, plan, folder, helpers)


def _follow(torchrun: Torchrun) -> int:
    """Be the worker of another rank than the first."""
    run, config, hosts, token, mark = torchrun.hear("terms")
    if torchrun.node == hosts[0]:
        folder = RunFolder(Path(run))
        return _work(torchrun, _plan_here(torchrun, folder, hosts, token, mark), folder, [])
    try:
        plan, folder, helpers = _settle(torchrun, config, hosts, token, mark)
    except Exception as error:
        failure = failure_of(error, str(torchrun.rank), 0)
        with suppress(DistStoreError, DistNetworkError):  # nobody is there to be told
            torchrun.say(f"failed {torchrun.node}", asdict(failure))
        raise
    return _work(torchrun, plan, folder, helpers)


def _settle(
    torchrun: Torchrun, config: str, hosts: Sequence[int], token: str, mark: str
) -> tuple[Plan, RunFolder, list[int]]:
    """Make a place to work on a further host; its first rank also starts the outpost there."""
    key, helpers = f"folder {torchrun.node}", list[int]()
    if torchrun.rank != hosts.index(torchrun.node):
        folder = RunFolder(Path(torchrun.hear(key)))
        plan = _plan_here(torchrun, folder, hosts, token, mark)
    else:
        folder = RunFolder(Path(tempfile.mkdtemp(prefix="stepahead-")))
        try:
            folder.config.write_text(config)
            plan = _plan_here(torchrun, folder, hosts, token, mark)
            helpers = [_start_outpost(torchrun, plan, folder)]
        except BaseException:
            shutil.rmtree(folder.path, ignore_errors=True)
            raise
        torchrun.say(key, str(folder.path))
    return plan, folder, helpers


def _plan_here(torchrun: Torchrun, folder: RunFolder, hosts: Sequence[int], token: str, mark: str) -> Plan:
    plan = plan_run(read_config(folder.config), hosts, torchrun.node)
    if not plan.is_on_several_hosts:
        return plan
    site = _site(torchrun, plan.config, token)
    if site.guard.fingerprint != mark:
        raise UsageError(
            f"link_secret {plan.config.link_secret} is another one on host {site.address} than on the first"
        )
    return replace(plan, site=site)


def _check_addresses(arrivals: Sequence[Arrival]) -> None:
    """Refuse hosts that would not find each other."""
    inner = [each.address for each in arrivals if ip_address(each.address).is_loopback]
    if inner and len({each.node for each in arrivals}) > 1:
        what = f"a host says that it is reached at {inner[0]}, which no other host can"
        raise UsageError(f"{what}; give --master-addr an outer address, or set GLOO_SOCKET_IFNAME")


def _work(torchrun: Torchrun, plan: Plan, folder: RunFolder, helpers: Sequence[int]) -> int:
    code = work_at(plan.place(str(torchrun.rank), folder.path, torchrun=True), plan)
    ends = [os.waitstatus_to_exitcode(os.waitpid(helper, 0)[1]) for helper in helpers]
    return code or next((end for end in ends if end), 0)


def _on_devices(config: Config, arrivals: Sequence[Arrival]) -> Config:
    """Name the device of each stage, where there are several hosts and it is left open."""
    if len({arrival.node for arrival in arrivals}) == 1 or config.device not in ("auto", "cuda"):
        return config
    names = [f"cuda:{each.local_rank % each.gpus}" if each.gpus else "cpu" for each in arrivals]
    if config.device == "cuda" and "cpu" in names:
        raise UsageError(f"device is 'cuda', but host {arrivals[names.index('cpu')].address} has none")
    return replace(config, device=",".join(names))


def _site(torchrun: Torchrun, config: Config, token: str) -> Site:
    """Return what there is to know on this host, if there are several."""
    guard = Guard(bytes.fromhex(token))
    if config.link_secret is not None:
        try:
            secret = Path(config.link_secret).read_bytes()
        except OSError as error:
            raise UsageError(f"link_secret {config.link_secret} cannot be read: {error.strerror}") from None
        if len(secret) < LEAST_SECRET:
            raise UsageError(f"link_secret {config.link_secret} has {len(secret)} bytes; {LEAST_SECRET} are the least")
        guard = Guard(secret, encrypts=True)
    store = torchrun.host, torchrun.port
    return Site(address=torchrun.address, store=store, run_id=torchrun.run_id, guard=guard)


def _start_helpers(
    torchrun: Torchrun,
    arrivals: Sequence[Arrival],
    plan: Plan,
    folder: RunFolder,
    console: Console,
    baseline: Baseline | None,
    finish: Finish,
) -> list[int]:
    """Start the supervisor and the data process beside rank 0."""
    listener, rank_0 = listen(folder.path), os.getpid()

    def work() -> int:
        os.setsid()  # torchrun kills rank 0 with all its group, and then there is most to tell
        hosts = _meet_hosts(torchrun.as_client(), arrivals, plan, folder.path) if plan.site else []

        def start(supervisor: Supervisor) -> None:
            supervisor.watch("0", rank_0, ours=False)

        tracer = Tracer(facts_of(plan, folder, baseline))
        finish(supervise(plan, folder, console, listener, start, None, tracer, hosts))
        return 0

    supervisor = fork(work, tied=False)
    listener.close()
    data = fork(partial(work_at, plan.place(DATA, folder.path), plan))
    return [supervisor, data]


def _meet_hosts(torchrun: Torchrun, arrivals: Sequence[Arrival], plan: Plan, run: Path) -> list[Host]:
    """Listen for the outpost of each further host, and let it know where."""
    assert plan.site is not None
    hosts: list[Host] = []
    addresses: dict[str, str] = {}
    for node in sorted(set(plan.hosts) - {plan.hosts[0]}):
        names = [str(stage) for stage, host in enumerate(plan.hosts) if host == node]
        line = ZeroCarrier(plan.site.port(), listens=True, guard=plan.site.guard, silence=SILENCE)
        addresses[str(node)] = line.address
        failure = partial(torchrun.heard, f"failed {node}")
        hosts.append(Host(arrivals[int(names[0])].address, names, Uplink(line), run, failure))
    torchrun.say("uplinks", addresses)
    return hosts


def _start_outpost(torchrun: Torchrun, plan: Plan, folder: RunFolder) -> int:
    """Start the outpost of this host beside the first of its ranks."""
    listener = listen(folder.path)
    address: str = torchrun.hear("uplinks")[str(torchrun.node)]
    names = [str(stage) for stage, host in enumerate(plan.hosts) if host == torchrun.node]

    def work() -> int:
        os.setsid()  # torchrun kills a rank with all its group, and then there is most to tell
        assert plan.site is not None
        try:
            uplink = Uplink(ZeroCarrier(address, listens=False, guard=plan.site.guard, silence=SILENCE))
            with closing(Outpost(folder.path, listener, names, plan.wiring, uplink)) as outpost:
                outpost.run()
        finally:
            shutil.rmtree(folder.path, ignore_errors=True)
        return 0

    outpost = fork(work, tied=False)
    listener.close()
    return outpost
