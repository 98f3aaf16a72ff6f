"""The lock of a run folder: one process at a time writes checkpoints and metrics there."""

import errno
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fastlatent.jobs.errors import RunError
from fastlatent.jobs.progress import say
from fastlatent.jobs.ranks import is_main_process

LOCK = ".lock"  # in the run folder: JSON of the process that holds it
UNSUPPORTED = {errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL}  # no locks on this disk

_owners: dict[Path, int] = {}  # folders that this process has locked, and by which thread
_descriptors: set[int] = set()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run folder, which is made where it is missing; only rank 0 does.

    RunError names the process that holds it already. The thread that holds it may ask again. The
    system frees the lock when a process dies, so that no lock outlives its owner. What was made
    for it and is still empty at the end is removed.
    """
    place = folder.resolve()
    if not is_main_process() or _owners.get(place) == threading.get_ident():
        yield
        return
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _lock_file(folder) as path:
            _owners[place] = threading.get_ident()
            try:
                yield
            finally:
                del _owners[place]
                path.unlink(missing_ok=True)
    finally:
        with suppress(OSError):  # not empty
            for path in made:
                path.rmdir()


@contextmanager
def _lock_file(folder: Path) -> Iterator[Path]:
    path = folder / LOCK
    try:
        descriptor = _acquire(path, folder)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(folder)) from None
    _descriptors.add(descriptor)
    try:
        yield path
    finally:
        _descriptors.discard(descriptor)
        os.close(descriptor)


def _acquire(path: Path, folder: Path) -> int:
    """The descriptor of the locked file, which names this process."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            holder = _holder(path)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunError(
                    f"{folder} is in use by {_described(holder)}; wait until that has ended"
                ) from None
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    raise
                # Without the system's help the file's content has to do.
                if holder is not None and _may_live(holder):
                    raise RunError(
                        f"{folder} is in use by {_described(holder)}; wait until that has ended, "
                        f"or remove {path} if it is gone"
                    ) from None
            # The last holder may have removed the file between our opening and our locking it.
            if _is_at(descriptor, path):
                if holder is not None:
                    say(f"{folder}: {_described(holder)} has ended without a word; going on")
                now = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}
                os.truncate(descriptor, 0)
                os.pwrite(descriptor, json.dumps(now).encode(), 0)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _holder(path: Path) -> dict[str, Any] | None:
    """Who wrote the file last; None where it is new, just being written or damaged."""
    try:
        found = json.loads(path.read_text())
        return {"host": str(found["host"]), "pid": int(found["pid"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _described(holder: dict[str, Any] | None) -> str:
    return "another process" if holder is None else f"process {holder['pid']} on {holder['host']}"


def _may_live(holder: dict[str, Any]) -> bool:
    """Whether the process may be running: on another host nobody can tell."""
    return holder["host"] != socket.gethostname() or is_alive(holder["pid"])


def is_alive(pid: int) -> bool:
    """Whether a process of this host has that id."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _let_go_in_child() -> None:
    # A forked worker that outlives its parent would keep the lock.
    while _descriptors:
        os.close(_descriptors.pop())


os.register_at_fork(after_in_child=_let_go_in_child)
