"""Commands under torchrun: every process takes a share of the work."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from fastlatent.console import RunError
from fastlatent.progress import is_main_process


@contextmanager
def joined_ranks(device: torch.device) -> Iterator[None]:
    """The processes of torchrun as a group, each on a GPU of its own; of one process nothing.

    Raises RunError where there are fewer GPUs than processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    cuda = device.type == "cuda"
    if cuda:
        local, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local >= gpus:
            raise RunError(f"there are {gpus} GPUs for process {local + 1}: start fewer processes")
        torch.cuda.set_device(local)
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def main_process_first() -> Iterator[None]:
    """The block runs on rank 0, then on the others: what it stores is made once."""
    joined = dist.is_available() and dist.is_initialized()
    if joined and not is_main_process():
        dist.barrier()
    yield
    if joined and is_main_process():
        dist.barrier()
