"""What the environment tells a process of others, and what it leaves out."""

import os

import torch.distributed as dist

from fastlatent.jobs.errors import LaunchError, UsageError

# What a launcher of several processes tells each of them.
LAUNCHED = ("WORLD_SIZE", "RANK", "LOCAL_RANK")


def integer(variable: str, default: int) -> int | None:
    """The integer in a variable of the environment; None where it is something else."""
    try:
        return int(os.environ.get(variable, default))
    except ValueError:
        return None


def grouped() -> bool:
    """Whether this process is in a process group, which knows all of the others."""
    return dist.is_available() and dist.is_initialized()


def check_launch() -> None:
    """UsageError in one of several processes that do not know of each other."""
    for variable in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"):
        tasks = os.environ.get(variable, "1")
        if "RANK" not in os.environ and tasks.isdecimal() and int(tasks) > 1:
            raise UsageError(
                f"{variable} tells of {tasks} tasks, but without RANK they do not know of each "
                "other and would all write the same run; start one task on each node, and in it "
                "torchrun --nproc-per-node GPUS -m fastlatent.train ...; "
                f"or, for a single process, unset {variable}"
            )
    # Some launchers number a lone process, too.
    alone = "WORLD_SIZE" in os.environ or integer("LOCAL_RANK", 0) in (0, -1)
    if not (alone or grouped()):
        raise UsageError(f"LOCAL_RANK is set, but WORLD_SIZE is not{_launcher('fastlatent.train')}")


def check_environment(module: str, meets: bool) -> None:
    """LaunchError where the environment tells of other processes, but not all there is to know.

    `meets`: the command has to find them, too. A process group that is there knows all.
    """
    given = [name for name in LAUNCHED if name in os.environ]
    if not given or grouped():
        return
    launcher = _launcher(module)
    count, rank = integer("WORLD_SIZE", 1), integer("RANK", 0)
    if count is None:
        size = os.environ["WORLD_SIZE"]
        raise LaunchError(f"WORLD_SIZE must be a number of processes; got {size!r}{launcher}")
    if count < 2 and not meets:
        return  # it is alone, whatever its number
    if rank != 0 and "WORLD_SIZE" not in given:
        raise LaunchError(f"{' and '.join(given)} is set, but WORLD_SIZE is not{launcher}")
    needed = ("RANK", "MASTER_ADDR", "MASTER_PORT") if meets and count > 1 else ()
    missing = [name for name in needed if not os.environ.get(name)]
    if missing:
        raise LaunchError(
            f"WORLD_SIZE tells of {count} processes, but {' and '.join(missing)} is not set"
            f"{launcher}"
        )
    if rank is None or not 0 <= rank < max(1, count):
        raise LaunchError(
            f"RANK must be from 0 to {max(1, count) - 1}, as WORLD_SIZE is {count}; "
            f"got {os.environ['RANK']!r}{launcher}"
        )
    if not needed:
        return
    if integer("LOCAL_RANK", 0) is None:
        local = os.environ["LOCAL_RANK"]
        raise LaunchError(f"LOCAL_RANK must be a number from 0 up; got {local!r}{launcher}")
    port = integer("MASTER_PORT", 0)
    if port is None or not 0 < port < 1 << 16:
        given_port = os.environ["MASTER_PORT"]
        raise LaunchError(f"MASTER_PORT must be from 1 to 65535; got {given_port!r}{launcher}")


def _launcher(module: str) -> str:
    return (
        f"; torchrun --nproc-per-node PROCESSES -m {module} ... sets all that several processes "
        f"need, and a single one needs none of {', '.join(LAUNCHED)}"
    )
