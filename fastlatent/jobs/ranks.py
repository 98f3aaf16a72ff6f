"""The processes of one command: how they find each other, agree, wait, and notice who is gone."""

import itertools
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from typing import Any

import torch
import torch.distributed as dist

from fastlatent.jobs.environment import LAUNCHED, grouped, integer
from fastlatent.jobs.errors import RunError, Stopped, Told, UsageError, sentence_of

PATIENCE = 90.0  # seconds without a sign of life after which a process is given up
GATHERING = timedelta(minutes=10)  # for all processes to have started
# No collective ends for want of time: one process may work for hours while the others wait for it,
# and whether it lives is asked otherwise.
UNBOUNDED = timedelta(days=7)
BEAT = 5.0  # seconds at most between two signs of life
TICK = 0.5  # seconds between two looks at the others
GRACE = 10.0  # seconds for this process to end by itself once another is gone


def rank() -> int:
    """Rank of this process in its group, or as its launcher says; a lone process has rank 0."""
    if grouped():
        return dist.get_rank()
    return (integer("RANK", 0) or 0) if launched() > 1 else 0


def world() -> int:
    """How many processes are in the group; 1 where there is none."""
    return dist.get_world_size() if grouped() else 1


def launched() -> int:
    """How many processes a launcher has started, which may not be a group yet."""
    return dist.get_world_size() if grouped() else integer("WORLD_SIZE", 1) or 1


def is_main_process() -> bool:
    """True on rank 0, and where there are no ranks."""
    return rank() == 0


def gather(value: Any) -> list[Any]:
    """The value that each rank gives, in the order of ranks, on all of them."""
    if world() == 1:
        return [value]
    values = [None] * world()
    dist.all_gather_object(values, value)
    return values


def processes(n: int) -> str:
    return f"{n} process{'es' * (n != 1)}"


def launcher() -> str:
    """How as many processes as these are started, up to the name of the module."""
    if world() == 1:
        return "python -m"
    nodes = int(os.environ.get("GROUP_WORLD_SIZE", "1"))  # as torchrun calls them
    several = f"--nnodes {nodes} " if nodes > 1 else ""
    return f"torchrun {several}--nproc-per-node {world() // nodes} -m"


@contextmanager
def joined(device: torch.device | None = None, patience: float = PATIENCE) -> Iterator[None]:
    """The processes that a launcher has started, as one group; nothing for a lone process.

    A group that is there is used and stays. If several processes have one error, only the first
    reports it. Raises RunError where there are fewer GPUs than processes, and where another process
    has ended or given no sign of life for so many seconds.
    """
    if Minder.current is not None:
        yield
        return
    own = launched() > 1 and not grouped()
    if own:
        _gather_processes(device)
    with _described():
        if world() == 1:
            yield
            return
        minder = Minder(patience)
        try:
            with minder:
                try:
                    yield
                except Exception as error:
                    raise minder.told_once(error) from error
        finally:
            if own:
                dist.destroy_process_group()
            minder.part()


@contextmanager
def _described() -> Iterator[None]:
    """Set the environment variables of ranks from what the process group knows."""
    known: dict[str, int] = {}
    if grouped():
        known = dict(zip(LAUNCHED, (world(), rank(), _local_rank()), strict=True))
    before = {name: os.environ[name] for name in known if name in os.environ}
    os.environ |= {name: str(value) for name, value in known.items()}
    try:
        yield
    finally:
        for name in known:
            os.environ.pop(name, None)
        os.environ |= before


def _local_rank() -> int:
    """This process's number on its host; by the number of GPUs where no launcher tells it."""
    told = integer("LOCAL_RANK", -1)
    return rank() % max(1, torch.cuda.device_count()) if told is None or told < 0 else told


_gatherings = itertools.count()  # as many in every process


@cache
def _meeting(_place: tuple[str, ...]) -> tuple[dist.Store, int, int]:
    """The store where processes meet, which the first of them may hold: it lives as long as that.

    With this process's rank and the number of processes.
    """
    return next(dist.rendezvous("env://", timeout=GATHERING))


def _found() -> tuple[dist.Store, int, int]:
    """A store that all processes have reached, this process's rank, and their number.

    The first waits in a thread, as signals are not heard inside PyTorch.
    """
    place = tuple(os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT"))
    prefix = f"gathering/{next(_gatherings)}"
    found: list[tuple[dist.Store, int, int]] = []
    faults: list[Exception] = []

    def meet() -> None:
        try:
            base, number, count = _meeting(place)
            store = dist.PrefixStore(prefix, base)
            store.set(f"started/{number}", "")
            store.wait([f"started/{k}" for k in range(count)], GATHERING)
            found.append((store, number, count))
        except Exception as error:
            faults.append(error)

    thread = threading.Thread(target=meet, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(TICK)
    if not found:
        raise RunError(
            f"not all of {os.environ['WORLD_SIZE']} processes met at {':'.join(place)} within "
            f"{GATHERING.total_seconds():g} seconds: {str(faults[0]).splitlines()[0]}"
        )
    return found[0]


def _gather_processes(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        local, gpus = _local_rank(), torch.cuda.device_count()
        if local >= gpus:
            raise RunError(f"there are {gpus} GPUs for process {local + 1}: start fewer processes")
        torch.cuda.set_device(local)
    cuda = torch.cuda.is_available() and (device is None or device.type == "cuda")
    store, number, count = _found()
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        store=store,
        rank=number,
        world_size=count,
        timeout=UNBOUNDED,
    )


class Minder:
    """Tells the other ranks that this one lives, and notices when one of them is gone.

    Each counts up a number in the store of the group; rank 0 looks at all numbers, the others at
    that of rank 0. Once a rank is gone the others have some seconds to end with an error of their
    own, as a collective has when a connection breaks. Then the process ends.
    """

    current: "Minder | None" = None
    _joins = itertools.count()  # as many on every rank

    def __init__(self, patience: float):
        self.patience = patience
        self.position: Callable[[], str] = str  # what to say where work breaks off
        self.alone = 0  # blocks of `main_alone` that this rank works in
        self.lost: str | None = None
        self._silent: dict[int, float] = {}  # seconds since a number was another one
        self._blocks = itertools.count()
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> "Minder":
        self.rank = rank()
        self.hosts = gather(socket.gethostname())
        store = dist.distributed_c10d._get_default_store()
        prefix = f"fastlatent/{next(Minder._joins)}"
        self._store, self._beats = (dist.PrefixStore(prefix, store.clone()) for _ in range(2))
        watched = range(1, world()) if rank() == 0 else range(1)
        self._silent = dict.fromkeys(watched, 0.0)
        Minder.current = self
        self._start(self._beat)
        self._start(self._watch)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._over.set()
        Minder.current = None
        if kind is not None and not issubclass(kind, Stopped):
            self.patience = min(self.patience, GRACE)
            with suppress(RuntimeError):
                self._store.set("ended", str(self.rank))
        with suppress(RuntimeError):
            self._store.set(f"left/{self.rank}", "")
        # One that comes back from the store while the interpreter ends would abort the process.
        until = time.monotonic() + self.patience
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _start(self, target: Callable[..., None], *arguments: str) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def part(self) -> None:
        """Let the others leave first, as the store may go with rank 0."""
        if self.rank == 0:
            left = [f"left/{k}" for k in range(len(self.hosts))]
            with suppress(RuntimeError):
                self._store.wait(left, timedelta(seconds=self.patience))

    def told_once(self, error: Exception) -> Exception:
        """The error that this rank ends with: one that it tells, or Told where another does."""
        if isinstance(error, Told | Stopped):
            return error
        code = 2 if isinstance(error, UsageError) else 1
        if _is_broken_connection(error):
            error = RunError(f"{self.lost or 'another process has ended'}{self.position()}")
        if code == 2:  # arguments, which all ranks have
            return error if self.rank == 0 else Told(code)
        try:
            first = self._store.add("told", 1) == 1
        except RuntimeError:  # DistError is one
            first = True
        return error if first else Told(code)

    def wait_for_main(self, block: str) -> None:
        """Wait until rank 0 has passed a block, however long it takes while it lives."""
        pause = 0.01
        while not self._store.check([block]):
            if self.lost is not None:
                raise RunError(f"{self.lost}{self.position()}")
            time.sleep(pause)
            pause = min(2 * pause, TICK)

    def block(self) -> str:
        """A name for the next block that rank 0 passes first or alone, the same on all ranks."""
        return f"block/{next(self._blocks)}"

    def passed(self, block: str) -> None:
        self._store.set(block, "")

    def _beat(self) -> None:
        seen: dict[int, bytes] = {}
        for number in itertools.count():
            try:
                self._beats.set(f"beat/{self.rank}", str(number))
                for other in self._silent:
                    if not self._beats.check([f"beat/{other}"]):
                        continue
                    value = self._beats.get(f"beat/{other}")
                    left = self._beats.check([f"left/{other}"])
                    if left or value != seen.get(other):
                        seen[other], self._silent[other] = value, 0.0
                if self._beats.check(["ended"]):
                    ended = int(self._beats.get("ended"))
                    self.lost = self.lost or f"{self._name(ended)} has ended"
            except RuntimeError:  # DistError is one
                pass  # the store is gone: nobody is heard any more
            if self._over.wait(min(BEAT, self.patience / 10)):
                return

    def _watch(self) -> None:
        last, since = time.monotonic(), 0.0
        while not self._over.wait(TICK):
            # While this process itself was halted, nobody was silent for it.
            passed, last = min(time.monotonic() - last, 2 * TICK), time.monotonic()
            for other in self._silent:
                self._silent[other] += passed
                if self._silent[other] > self.patience and self.lost is None:
                    self.lost = (
                        f"{self._name(other)} has given no sign of life for "
                        f"{self.patience:g} seconds"
                    )
                    self._tell_of(other)
            since = since + passed if self.lost is not None and not self.alone else 0.0
            if since > GRACE:
                self._end()

    def _tell_of(self, other: int) -> None:
        """Let ranks that look at rank 0 alone know of another that is gone."""
        if self.rank == 0:
            self._start(self._beats.set, "ended", str(other))

    def _end(self) -> None:
        """End the process, whose main thread waits for what will never come."""
        told = self.told_once(RunError(f"{self.lost}{self.position()}"))
        if not isinstance(told, Told):
            print(f"error: {told}", file=sys.stderr, flush=True)
        os._exit(1)

    def _name(self, other: int) -> str:
        hosts = set(self.hosts)
        return f"process {other}" + (f" on {self.hosts[other]}" if len(hosts) > 1 else "")


def _is_broken_connection(error: Exception) -> bool:
    text = str(error).lower()
    broken = isinstance(error, RuntimeError) and ("gloo" in text or "nccl" in text)
    return isinstance(error, dist.DistError) or broken


@contextmanager
def together() -> Iterator[None]:
    """Let all ranks fail where one of them does in the block, and rank 0 say why.

    For a block in which no rank asks another.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    reasons = gather(None if failure is None else (socket.gethostname(), sentence_of(failure)))
    failed = [number for number, reason in enumerate(reasons) if reason is not None]
    if failed and rank() != 0:
        raise Told(2 if isinstance(failure, UsageError) else 1)
    if failure is not None:
        raise failure
    if failed:
        host, reason = reasons[failed[0]]
        raise RunError(f"process {failed[0]} on {host}: {reason}")


def check_agreement(values: dict[str, Any]) -> None:
    """RunError where another rank has other values than rank 0."""
    first, *others = gather(values)
    for number, other in enumerate(others, 1):
        for name, expected in first.items():
            if other[name] != expected:
                raise RunError(
                    f"process {number} has {name} {other[name]}, and process 0 has {expected}; "
                    "all must be started with the same command, on the same run and images"
                )


@contextmanager
def main_alone() -> Iterator[bool]:
    """True on rank 0, for work that it does alone; the others wait for it, however long it takes.

    `with main_alone() as mine: if mine: ...`
    """
    minder = Minder.current
    if minder is None:
        yield rank() == 0
        return
    block = minder.block()
    if rank() != 0:
        yield False
        minder.wait_for_main(block)
        return
    minder.alone += 1
    try:
        yield True
    finally:
        minder.alone -= 1
    minder.passed(block)


@contextmanager
def main_first() -> Iterator[None]:
    """The block runs on rank 0, then on the others: what it stores is made once."""
    minder = Minder.current
    if minder is None:
        yield
        return
    block = minder.block()
    if rank() != 0:
        minder.wait_for_main(block)
    yield
    if rank() == 0:
        minder.passed(block)


def where_it_breaks_off(position: Callable[[], str]) -> None:
    """Let errors over other processes end with what `position` then gives."""
    if Minder.current is not None:
        Minder.current.position = position
