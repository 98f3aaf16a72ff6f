"""What the environment tells a process of others, and what it leaves out."""

import os

import torch.distributed as dist

from fastlatent.jobs.errors import LaunchError, UsageError

# What a launcher of several processes tells each of them.
LAUNCHED = ("WORLD_SIZE", "RANK", "LOCAL_RANK")


def check_launch() -> None:
    """UsageError in one of several tasks of a scheduler that do not know of each other."""
    for variable in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"):
        tasks = os.environ.get(variable, "1")
        if "RANK" not in os.environ and tasks.isdecimal() and int(tasks) > 1:
            raise UsageError(
                f"{variable} tells of {tasks} tasks, but without RANK they do not know of each "
                "other and would all write the same run; start one task on each node, and in it "
                "torchrun --nproc-per-node GPUS -m fastlatent.train ...; "
                f"or, for a single process, unset {variable}"
            )


def check_environment(module: str, meets: bool) -> None:
    """LaunchError where the environment tells of other processes, but not all there is to know.

    `meets`: the command has to find them, too. A process group that is there knows all.
    """
    given = {name: os.environ[name] for name in LAUNCHED if name in os.environ}
    if not given or (dist.is_available() and dist.is_initialized()):
        return
    launcher = (
        f"; torchrun --nproc-per-node PROCESSES -m {module} ... sets all that several processes "
        f"need, and a single one needs none of {', '.join(LAUNCHED)}"
    )
    size = given.get("WORLD_SIZE", "1")
    if not size.isdecimal() or int(size) < 1:
        raise LaunchError(f"WORLD_SIZE must be a number of processes; got {size!r}{launcher}")
    # Some launchers number a lone process, too.
    if "WORLD_SIZE" not in given and ("RANK" in given or given["LOCAL_RANK"] not in ("0", "-1")):
        raise LaunchError(f"{' and '.join(given)} is set, but WORLD_SIZE is not{launcher}")
    count = int(size)
    needed = (*LAUNCHED, "MASTER_ADDR", "MASTER_PORT") if meets else ("RANK",)
    missing = [name for name in needed if not os.environ.get(name)] if count > 1 else []
    if missing:
        raise LaunchError(
            f"WORLD_SIZE tells of {count} processes, but {' and '.join(missing)} is not set"
            f"{launcher}"
        )
    for name in ("RANK", "LOCAL_RANK"):
        number = given.get(name, "0")
        if count == 1 and name == "LOCAL_RANK":
            continue
        if not number.isdecimal() or int(number) >= count:
            raise LaunchError(
                f"{name} must be from 0 to {count - 1}, as WORLD_SIZE is {count}; got {number!r}"
                f"{launcher}"
            )
    port = os.environ.get("MASTER_PORT", "1")
    if meets and count > 1 and not (port.isdecimal() and 0 < int(port) < 1 << 16):
        raise LaunchError(f"MASTER_PORT must be from 1 to 65535; got {port!r}{launcher}")
