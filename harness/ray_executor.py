"""Jobs on Ray: each a task with its CPUs, GPUs, memory and time limit, on this machine or on a cluster.

The order of jobs, the leases of runs and the messages are those of local workers (`harness.dispatch`); here is what Ray
has beside them: nodes, which get lost, and what a job may take of them. A thread of this process waits for each task,
and `_Jobs` says what follows from each of the ways in which tasks end. A job that could not mark itself as failed is
marked by this process, once nobody holds the lease of its run.

A training on several devices is a task for each in a placement group; they join as processes of torchrun do.

This is the one module that imports Ray, and only `harness.carry_out` imports this one, where Ray is asked for.
"""

from __future__ import annotations

import math
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import ray
import torch
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError
from ray.util import placement_group, placement_group_table, remove_placement_group
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from twinbench.foundation.cores import usable_cores
from twinbench.foundation.errors import ExplainedError, InputError, RunFailure
from twinbench.foundation.lease import Seen
from twinbench.harness.console import legible_warnings
from twinbench.harness.dispatch import Messages, Told, check_stop, hand_out
from twinbench.harness.estimate import Unit, Use, estimate, former_use, measured_use, time_limit
from twinbench.harness.execute import Training, attempt, evaluation_device, explained, give_up, train_run
from twinbench.harness.images import Images
from twinbench.harness.mirror import Sights, mirrored, store_at, url_of
from twinbench.harness.plan import Job
from twinbench.harness.plugins import load_plugins
from twinbench.harness.ray_options import RayOptions
from twinbench.harness.schedule import Waiting, unfinished_runs
from twinbench.harness.source import has_training
from twinbench.harness.watch import Watch
from twinbench.harness.workers import compute_with, default_workers, threads_each, timing_line, too_late
from twinbench.pretraining.engine import Hardware, launch
from twinbench.pretraining.interrupt import Interrupted, StopRequest
from twinbench.pretraining.memory import is_out_of_memory, release_freed_memory
from twinbench.pretraining.recipe import Recipe
from twinbench.pretraining.train import ReportProgress, device_name

LOST_TRIES = 3
"""So many times a job is begun again after its node or its process was lost."""
MEMORY_SHARE, LEAST_MEMORY, UNKNOWN_MEMORY = 1.25, 2**29, 2**30
"""A job asks for 1.25 times the memory of its estimate, at least 512 MiB; one that nobody can estimate, for 1 GiB."""
MORE_MEMORY = 2
"""So many times as much memory a job asks for that had too little."""

_SAVE_SECONDS = 120.0  # for a job that was asked to stop; then it is killed
_PEERS_SECONDS = 60.0  # for the ranks of a training when the first of them has ended
_TIMING_SECONDS = 600.0
_PROGRESS_SECONDS = 1.0
_NODES_SECONDS = 5.0  # between two looks at which nodes there are
_POLL_SECONDS = 0.5
_AHEAD = 2  # tasks that Ray has at a time, for each that it can run: those that wait begin without a pause
_MOST_THREADS = 4096
_SEEN_TRIES, _SEEN_SECONDS = 10, 0.5  # for a network file system that shows a new file late
_KNOCK_SECONDS = 10.0
_STORE_OF_OBJECTS = 128 * 2**20  # bytes of shared memory: next to nothing passes through it


def execute_on_ray(
    plan: Sequence[Job],
    images: Images,
    workers: int | None,
    options: RayOptions,
    watch: Watch,
    say: Callable[[str], None],
    job_seconds: float | None = None,
) -> int:
    """Do every unfinished job as a task of Ray; returns how many jobs failed.

    A job has as many CPUs as one of so many ``workers`` on this machine would have, or of `default_workers`; where
    there are GPUs, one of them and, unless ``workers`` are given, its share of the CPUs beside it. It may take
    ``job_seconds``; unless they are given, what `time_limit` says. What jobs take is estimated as for local workers, on
    the nodes of the cluster.

    Raises RunFailure if there is no such cluster, if a node does not see the run store or none has what a job needs;
    what was finished is kept. Raises Interrupted after a signal to stop, when every training has saved.
    """
    store = plan[0].run.folder.parent
    with _connected(options.address), _announced(store) as announced, StopRequest() as stop:
        share = _share(workers, plan, options.devices)
        site = _Site(Path.cwd(), store, announced, images.data_root, share.cpus, url_of(store))
        cluster = _Cluster(share, options)
        device = _settle_everywhere(site, stop)
        use = _estimated(plan, images, store, device, site, cluster, stop, say)
        with _Jobs(site, cluster, options, use, job_seconds, watch) as jobs:
            seconds = {label: each.seconds for label, each in use.items()}
            runs = unfinished_runs(plan, seconds)
            lengths = [[seconds.get(job.label, 0.0) for job in each] for each in runs]
            waiting = Waiting(lengths, cluster.slots())
            return hand_out(runs, waiting, jobs.room, jobs.submit, jobs.messages, jobs.clock, say, stop)


# ---- the cluster


@contextmanager
def _connected(address: str | None) -> Iterator[None]:
    """Within a cluster; without an address one that this process starts, on this machine and for itself alone.

    That one has no dashboard, and listens on the loopback interface (`ray_options.prepare_for_ray`).
    """
    listeners = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        if address is None:
            ray.init(
                address="local",
                num_cpus=usable_cores(),
                include_dashboard=False,
                object_store_memory=_STORE_OF_OBJECTS,
                logging_level="error",  # it warns that others need a password to reach it, as they should
                _node_ip_address="127.0.0.1",
            )
        else:
            _knock(address)
            ray.init(address=address, logging_level="warning")
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"no Ray cluster can be used: {error}",
            where=address or "this machine",
            next_step="start one with: ray start --head; or leave the address out, for this machine alone",
            option="address",
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, listener in listeners.items():  # Ray has put its own in their place
                signal.signal(number, listener)
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raise OSError or ValueError where nobody answers: Ray itself would try for minutes."""
    host, colon, port = address.rpartition(":")
    if colon:
        socket.create_connection((host, int(port)), timeout=_KNOCK_SECONDS).close()


@contextmanager
def _announced(store: Path) -> Iterator[Path | None]:
    """A file in the run store by which nodes know that they see this store and no other, for as long as it is used.

    None where the store is an object store, which every node has by its URL.
    """
    if mirrored(store) is not None:
        yield None
        return
    file = store.absolute() / f".seen-by-nodes-{secrets.token_hex(8)}"
    file.touch()
    try:
        yield file
    finally:
        file.unlink(missing_ok=True)


def _nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _this_node() -> str:
    return str(ray.get_runtime_context().get_node_id())


def _on(node: str) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node, soft=False)


class _Share(NamedTuple):
    """What a process of a job takes of a node, beside memory."""

    cpus: int
    gpus: int

    def of(self, node: dict[str, Any]) -> int:
        """How many processes a node can have at a time."""
        has = node["Resources"]
        count = int(has.get("CPU", 0) // self.cpus)
        return min(count, int(has.get("GPU", 0) // self.gpus)) if self.gpus else count


def _share(workers: int | None, plan: Sequence[Job], devices: int) -> _Share:
    """What a process of a job takes: with ``workers`` as many CPUs as each of these would have here.

    Unless they are given a job's processes on so many ``devices`` of a node share what one process would have.
    """
    having = [node["Resources"] for node in _nodes() if node["Resources"].get("GPU", 0) >= 1]
    if having and workers is None:
        return _Share(max(1, min(int(has.get("CPU", 0) // has["GPU"]) for has in having)), 1)
    return _Share(threads_each(workers or default_workers(plan) * devices), int(bool(having)))


class _Cluster:
    """How much there is of what jobs need; raises RunFailure if that is not enough for any."""

    def __init__(self, share: _Share, options: RayOptions) -> None:
        self.share = share
        self._looked = -_NODES_SECONDS
        self._found: list[dict[str, Any]] = []
        enough = sum(share.of(node) >= options.devices for node in self._alive())
        if enough < options.nodes:
            each = f"{options.devices * share.cpus} CPUs" + f" and {options.devices} GPUs" * bool(share.gpus)
            have = ", ".join(_described(node) for node in self._found) or "none"
            raise RunFailure(
                f"a job needs {options.nodes} node{'s' * (options.nodes > 1)} with {each}, and there are {enough}",
                where=f"nodes of the cluster: {have}",
                next_step="ask for fewer devices, or for a smaller share of this machine's cores (--workers)",
            )

    def slots(self) -> int:
        """How many processes of jobs fit on the nodes that there are now."""
        return sum(self.share.of(node) for node in self._alive())

    def memory(self, wanted: float) -> int:
        """So many bytes, or what the largest node has: a task that asks for more would wait for ever."""
        largest = max((node["Resources"].get("memory", 0.0) for node in self._alive()), default=wanted)
        return int(min(wanted, largest))

    def _alive(self) -> list[dict[str, Any]]:
        if time.monotonic() - self._looked >= _NODES_SECONDS:
            self._found, self._looked = _nodes(), time.monotonic()
        return self._found


def _described(node: dict[str, Any]) -> str:
    has = node["Resources"]
    gpus = f" and {has['GPU']:g} GPUs" if has.get("GPU") else ""
    return f"{node['NodeManagerAddress']} with {has.get('CPU', 0):g} CPUs{gpus}"


# ---- what runs on the nodes


@dataclass(frozen=True)
class _Site:
    """Where a task finds what the command has, which is at the same place on every node.

    ``announced`` is a file in the run store, or None where that is the mirror of an object store. A process computes
    with so many ``threads``.
    """

    folder: Path
    store: Path
    announced: Path | None
    data_root: Path | None
    threads: int
    url: str = ""


@cache
def _settle(site: _Site) -> Images:
    """Make this process one that does jobs; the images, of which each set is read once. Raises RunFailure."""
    _require(site.folder, "the folder of the command", site.folder)
    if site.announced is not None:
        _require(site.announced, "the run store", site.announced.parent)
    elif store_at(site.url) != site.store:
        raise _unseen(
            f"the mirror of {site.url}", site.store, "let the cache folder have the same path on all nodes"
        )
    os.chdir(site.folder)  # relative paths of image sets begin there
    compute_with(site.threads)
    legible_warnings()
    load_plugins(warn=False)
    return Images(site.data_root, quiet=True)


def _require(place: Path, what: str, shown: Path) -> None:
    for _ in range(_SEEN_TRIES):
        if place.exists():
            return
        time.sleep(_SEEN_SECONDS)
    raise _unseen(
        what, shown, "put it on a disk that all nodes have at the same place, or leave that node out"
    )


def _unseen(what: str, place: Path, next_step: str) -> RunFailure:
    node = f"node {ray.util.get_node_ip_address()}"
    return RunFailure(f"{node} does not see {what}: {place}", where=node, next_step=next_step, option="runs")


def _look(site: _Site) -> str:
    """The device of a node on which everything is there."""
    _settle(site)
    return device_name(evaluation_device())


def _time(site: _Site, unit: Unit) -> Use:
    return measured_use(unit, _settle(site))


class _Ended(NamedTuple):
    """How a job ended of which a process could tell: what `attempt` returned, or why it returned nothing.

    ``is_marked``: the run store says that it failed. ``lost`` is what became of a process that was stopped or killed.
    """

    failed: bool | None = None
    error: ExplainedError | None = None
    out_of_memory: bool = False
    is_marked: bool = False
    lost: str = ""


@dataclass(frozen=True)
class _Meeting:
    """Where the ranks of a training meet, and which of them this one is: as torchrun tells its processes."""

    address: str
    port: int
    rank: int
    hardware: Hardware

    def announce(self) -> None:
        """Set the variables of torchrun. A rank with a GPU sees no other, so each is as if alone on its machine."""
        here = self.hardware.devices
        variables = {
            "TORCHELASTIC_RUN_ID": f"{self.address}:{self.port}",
            "MASTER_ADDR": self.address,
            "MASTER_PORT": self.port,
            "RANK": self.rank,
            "WORLD_SIZE": self.hardware.ranks,
            "LOCAL_RANK": self.rank % here,
            "LOCAL_WORLD_SIZE": here,
            "GROUP_RANK": self.rank // here,
        }
        os.environ.update({name: str(value) for name, value in variables.items()})


def _do(
    site: _Site, job: Job, seen: Seen | Sights | None, messages: Messages, meeting: _Meeting | None
) -> _Ended:
    """Do a job, or be one rank of a training, as `attempt` does. ``seen`` has an age in the place of a time."""
    images = _settle(site)
    told = Told(messages, _PROGRESS_SECONDS)
    seen = _turned(seen)
    try:
        training = Training()
        if meeting is not None:
            training = Training(_join(meeting, job, site.threads))
            if meeting.rank > 0:
                train_run(job.run, images[job.trained_on], training)
                return _Ended(False)
        lease = job.run.lease(seen)
        return _Ended(attempt(job, images, told, told.say, lease, debug=True, training=training))
    except Interrupted as error:
        return _Ended(lost=error.what)
    except Exception as error:
        is_marked = meeting is None or meeting.rank == 0
        return _Ended(True, explained(error), is_out_of_memory(error), is_marked)
    finally:
        release_freed_memory()


def _turned(seen: Seen | Sights | None) -> Seen | Sights | None:
    """What was seen of leases with an age in the place of each time of this machine's clock, or the other way round."""
    if isinstance(seen, Sights):
        return Sights(_turned_one(seen.here), _turned_one(seen.there))
    return _turned_one(seen)


def _turned_one(seen: Seen | None) -> Seen | None:
    return None if seen is None else seen._replace(seconds=time.monotonic() - seen.seconds)


def _join(meeting: _Meeting, job: Job, threads: int) -> Any:
    meeting.announce()
    assert isinstance(job.run.source, Recipe)
    engine = launch(meeting.hardware, job.run.source.precision)
    torch.set_num_threads(threads)  # those that Ray keeps for this rank, whatever the machine has
    return engine


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("", 0))
        return int(found.getsockname()[1])


@cache
def _remote(function: Callable[..., Any], **options: Any) -> Any:
    """A function as a task, which Ray never repeats by itself: what is lost is counted and named here."""
    return ray.remote(**{"num_cpus": 0, "max_retries": 0, **options})(function)


def _settle_everywhere(site: _Site, stop: StopRequest) -> str:
    """Look on every node whether all is there; the device of the first. Raises RunFailure, also of a single node."""
    looks = [
        _remote(_look).options(scheduling_strategy=_on(node["NodeID"])).remote(site) for node in _nodes()
    ]
    _wait_for(looks, stop)
    devices = []
    for look in looks:
        try:
            devices.append(str(ray.get(look)))
        except RayTaskError as error:
            raise _cause(error) from error
        except RayError:  # a node that has just been lost needs to see nothing
            continue
    return next(iter(devices), "")


def _wait_for(refs: list[Any], stop: StopRequest, seconds: float = float("inf")) -> None:
    """Wait until all have ended, at most for so many seconds. Raises Interrupted after a signal to stop."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and ray.wait(refs, num_returns=len(refs), timeout=_POLL_SECONDS)[1]:
        check_stop(stop)


def _cause(error: RayTaskError) -> ExplainedError:
    cause = getattr(error, "cause", None)
    return explained(cause if isinstance(cause, Exception) else error)


def _estimated(
    plan: Sequence[Job],
    images: Images,
    store: Path,
    device: str,
    site: _Site,
    cluster: _Cluster,
    stop: StopRequest,
    say: Callable[[str], None],
) -> dict[str, Use]:
    """What each unfinished job takes; nothing is said of one whose timing fails, for the job will say why."""

    def times(units: list[Unit]) -> list[Use]:
        say(f"{timing_line(units)} to know what the jobs take")
        share = {"num_cpus": cluster.share.cpus, "num_gpus": cluster.share.gpus}
        timings = [_remote(_time).options(**share).remote(site, unit) for unit in units]
        _wait_for(timings, stop, _TIMING_SECONDS)
        return [_timing(timing) for timing in timings]

    return estimate(plan, images, former_use(store, device), times)


def _timing(timing: Any) -> Use:
    try:
        return ray.get(timing, timeout=0)
    except RayError:
        ray.cancel(timing, force=True)
        return Use()


# ---- what this process makes of it


class _Clock:
    """The watch, which also knows when each job began: one that waits for a node does not use up its time."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._since: dict[str, float] = {}

    def seconds(self, label: str) -> float:
        """For how long a job has been under way."""
        since = self._since.get(label)
        return 0.0 if since is None else time.monotonic() - since

    def forget(self, label: str) -> None:
        """A job is to begin anew."""
        self._since.pop(label, None)

    def start(self, label: str) -> ReportProgress:
        """As the watch does."""
        self._since[label] = time.monotonic()
        return self._watch.start(label)

    def end(self, label: str, failure: str = "") -> None:
        """As the watch does."""
        self._watch.end(label, failure)

    def waits(self, label: str, holder: str) -> None:
        """As the watch does."""
        self._watch.waits(label, holder)


class _TooLong(Exception):
    """A job has been stopped after its time limit."""


class _Stopped(Exception):
    """The command is to end."""


class _Jobs:
    """The jobs that Ray has, each with a thread here that waits for it and says what follows.

    When left, every job is asked to save and has ended.
    """

    def __init__(
        self,
        site: _Site,
        cluster: _Cluster,
        options: RayOptions,
        use: dict[str, Use],
        limit: float | None,
        watch: Watch,
    ) -> None:
        self._site, self._cluster, self._options, self._use, self._limit = site, cluster, options, use, limit
        # beside this process, with which all would end, and begun again if it is killed
        here = {"num_cpus": 0, "scheduling_strategy": _on(_this_node())}
        self.messages: Any = Queue(actor_options={**here, "max_restarts": -1, "max_task_retries": -1})
        self._told = Told(self.messages)
        self.clock = _Clock(watch)
        self._threads = ThreadPoolExecutor(_MOST_THREADS, thread_name_prefix="job")
        self._stopping = threading.Event()
        self._lost: dict[str, int] = {}
        self._wants_more: set[str] = set()
        self._given_up: dict[str, RunFailure] = {}
        self._said_none = False

    def __enter__(self) -> _Jobs:
        return self

    def __exit__(self, *raised: object) -> None:
        self._stopping.set()
        self._threads.shutdown()

    def room(self) -> int:
        """How many jobs Ray may have now; those for which it has no node yet wait there."""
        slots = self._cluster.slots()
        if not slots and not self._said_none:
            self._told.say("no node is left that could take a job: waiting for one")
        self._said_none = not slots
        return max(1, _AHEAD * slots // self._options.ranks)

    def submit(self, job: Job, seen: Seen | Sights | None) -> Future[bool | None]:
        """Give a job to Ray; the future has what `attempt` returns, None also where the job is to be begun again."""
        return self._threads.submit(self._try, job, seen)

    def _try(self, job: Job, seen: Seen | Sights | None) -> bool | None:
        if job.label in self._given_up:
            return self._give_up(job, self._given_up[job.label], seen)
        self.clock.forget(job.label)
        try:
            ended = self._done_in_group(job, seen) if self._has_ranks(job) else self._done(job, seen)
        except _Stopped:
            return None
        except _TooLong:
            return self._give_up(job, too_late(job.label, self._may_take(job)))
        except RayTaskError as error:
            raise _cause(error) from error
        except RayError as error:
            ended = _Ended(lost=_in_short(error))
        return ended.failed if self._stopping.is_set() else self._followed(job, ended)

    def _followed(self, job: Job, ended: _Ended) -> bool | None:
        """What follows from the way in which a job has ended; what `attempt` returns."""
        if ended.lost:
            return self._again(job, ended.lost)
        if ended.error is not None:
            if ended.out_of_memory:
                return self._with_more_memory(job, ended.error)
            if not ended.is_marked:
                return self._give_up(job, RunFailure(ended.error.what, ended.error.where))
            self._told.say(f"FAILED {job.label}: {ended.error}")
            self._told.end(job.label, ended.error.what)
        return ended.failed

    def _has_ranks(self, job: Job) -> bool:
        return self._options.ranks > 1 and job.evaluation is None and has_training(job.run.source)

    # what follows from the ways in which a job ends

    def _again(self, job: Job, why: str) -> bool | None:
        """After the loss of a node or of a process, or where somebody stopped that."""
        count = self._lost[job.label] = self._lost.get(job.label, 0) + 1
        if count > LOST_TRIES:
            return self._give_up(
                job,
                RunFailure(
                    f"lost {count} times, the last time so: {why}",
                    where=job.run.folder,
                    next_step="look at the nodes of the cluster, and run the same command again",
                ),
            )
        self._told.say(f"LOST {job.label}: {why}; it is begun again, try {count + 1} of {LOST_TRIES + 1}")
        self._told.waits(job.label, "")
        return None

    def _with_more_memory(self, job: Job, error: ExplainedError) -> bool | None:
        """Once; then it has failed."""
        memory = self._memory(job)
        if job.label in self._wants_more:
            return self._give_up(
                job,
                RunFailure(
                    f"out of memory, also with {_gib(memory)}: {error.what}",
                    where=error.where or job.run.folder,
                    next_step="use nodes with more memory, or a smaller batch or image set",
                ),
            )
        self._wants_more.add(job.label)
        more = _gib(self._memory(job))
        what = f"OUT OF MEMORY {job.label}, which asked for {_gib(memory)}: {error.what}"
        self._told.say(f"{what}; it is tried once more with {more}")
        self._told.waits(job.label, "")
        return None

    def _give_up(self, job: Job, error: RunFailure, seen: Seen | Sights | None = None) -> bool | None:
        """Mark a job as failed; again if the lease of its run is held, as it is for a time after a node is lost.

        ``seen`` is for how long: a lease that is looked at for the first time is held.
        """
        self._given_up[job.label] = error
        return give_up(job, error, job.run.lease(seen), self._told, self._told.say)

    # what a job may take

    def _memory(self, job: Job) -> int:
        """The bytes of each of its processes."""
        # of a job on a GPU the memory of the GPU is known
        known = 0.0 if self._cluster.share.gpus else self._use.get(job.label, Use()).memory_mb * 2**20
        wanted = max(MEMORY_SHARE * known, LEAST_MEMORY) if known else UNKNOWN_MEMORY
        together = self._options.devices if self._has_ranks(job) else 1
        times = MORE_MEMORY if job.label in self._wants_more else 1
        return self._cluster.memory(wanted * times * together) // together

    def _may_take(self, job: Job) -> float:
        """The seconds after which it is stopped."""
        limit = self._limit or time_limit(self._use.get(job.label, Use()))
        return math.inf if limit is None else limit

    # tasks

    def _begin(
        self, job: Job, seen: Seen | Sights | None, meeting: _Meeting | None = None, **options: Any
    ) -> Any:
        """The task of a job, or of one rank of a training."""
        share = self._cluster.share
        seen = _turned(seen)  # clocks of machines differ, spans of time do not
        # a process that has been a rank is nothing else afterwards
        task = _remote(_do) if meeting is None else _remote(_do, max_calls=1)
        takes = {"num_cpus": share.cpus, "num_gpus": share.gpus, "memory": self._memory(job)}
        return task.options(**takes, **options).remote(self._site, job, seen, self.messages, meeting)

    def _done(self, job: Job, seen: Seen | Sights | None) -> _Ended:
        """Do a job in one task."""
        if self._stopping.is_set():
            raise _Stopped
        task = self._begin(job, seen)
        self._wait(job, [task])
        return _result(task)

    def _wait(self, job: Job, tasks: list[Any]) -> None:
        """Wait until one of the tasks has ended.

        Raises _Stopped or _TooLong when all have, which were asked to save and then killed if they did not end.
        """
        while not ray.wait(tasks, timeout=_POLL_SECONDS)[0]:
            too_long = self.clock.seconds(job.label) > self._may_take(job)
            if too_long or self._stopping.is_set():
                for task in tasks:
                    ray.cancel(task)
                _end(tasks, _SAVE_SECONDS)
                raise _TooLong if too_long and not self._stopping.is_set() else _Stopped

    def _done_in_group(self, job: Job, seen: Seen | Sights | None) -> _Ended:
        """Do a training in one task for each of its devices."""
        options, share = self._options, self._cluster.share
        bundle = {"CPU": options.devices * share.cpus, "memory": options.devices * self._memory(job)}
        bundle |= {"GPU": options.devices} if share.gpus else {}
        with self._placed([bundle] * options.nodes) as group:
            first = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)
            port = _remote(_free_port).options(scheduling_strategy=first).remote()
            self._wait(job, [port])
            # a rank with a GPU sees this one alone
            hardware = Hardware(1, options.ranks) if share.gpus else Hardware(options.devices, options.nodes)
            meeting = _Meeting(_address(group, options.nodes), ray.get(port), 0, hardware)
            tasks = [
                self._begin(
                    job,
                    seen,
                    replace(meeting, rank=rank),
                    scheduling_strategy=PlacementGroupSchedulingStrategy(
                        group, placement_group_bundle_index=rank // options.devices
                    ),
                )
                for rank in range(options.ranks)
            ]
            self._wait(job, tasks)
            return self._of_ranks(job, tasks)

    def _of_ranks(self, job: Job, tasks: list[Any]) -> _Ended:
        """How a training ended, given its ranks, one of which has: if one was lost, the others failed for that."""
        main = _result(tasks[0]) if ray.wait(tasks[:1], timeout=0)[0] else None
        # another process is at work in the run: the other ranks wait for nobody
        killed = _end(tasks, 0.0 if main == _Ended() else _PEERS_SECONDS)
        results = {rank: _result(task) for rank, task in enumerate(tasks) if task not in killed}
        main = results.get(0, _Ended(True))
        if main.failed is not True and not main.lost:
            return main
        for rank, ended in results.items():
            if rank and ended.error is not None:
                self._told.say(f"{job.label}, rank {rank}: {ended.error}")
        worst = sorted(results.values(), key=lambda ended: (not ended.out_of_memory, not ended.lost))
        return next((ended for ended in worst if ended.lost or ended.error is not None), main)

    @contextmanager
    def _placed(self, bundles: list[dict[str, Any]]) -> Iterator[Any]:
        """A placement group, each bundle of which is on a node of its own."""
        group = placement_group(bundles, strategy="STRICT_SPREAD")
        try:
            while not group.wait(_POLL_SECONDS):
                if self._stopping.is_set():
                    raise _Stopped
            yield group
        finally:
            remove_placement_group(group)


def _address(group: Any, nodes: int) -> str:
    """Where the first rank listens: on a single machine nobody outside can reach it."""
    if nodes == 1:
        return "127.0.0.1"
    node = placement_group_table(group)["bundles_to_node_id"][0]
    return next(str(each["NodeManagerAddress"]) for each in _nodes() if each["NodeID"] == node)


def _end(tasks: list[Any], seconds: float) -> list[Any]:
    """Wait until all have ended; those that have not after so many seconds are killed and returned."""
    _, left = ray.wait(tasks, num_returns=len(tasks), timeout=seconds)
    for task in left:
        ray.cancel(task, force=True)
    if left:
        ray.wait(left, num_returns=len(left), timeout=_PEERS_SECONDS)
    return list(left)


def _result(task: Any) -> _Ended:
    """How the job of a task ended that has; raises RayTaskError for what it could not even begin with."""
    try:
        return ray.get(task)
    except OutOfMemoryError:  # which speaks of the node at length
        return _Ended(True, RunFailure("its node had no memory left, and Ray ended it"), out_of_memory=True)
    except RayTaskError:
        raise
    except RayError as error:
        return _Ended(lost=_in_short(error))


def _in_short(error: Exception) -> str:
    """What Ray says first; it goes on with advice, and with where its logs are."""
    first = str(error).strip().partition("\n")[0].partition(". ")[0]
    return f"{type(error).__name__}: {first}"


def _gib(memory: int) -> str:
    return f"{memory / 2**30:.1f} GiB"
