"""Several processes that train one model: torch's own FSDP2 (Zhao et al., arXiv 2304.11277) under `torchrun`.

Each process computes its share of every batch and holds its share of parameters, gradients and the optimizer's state.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from smc.errors import InputError

RANK, COUNT = "RANK", "WORLD_SIZE"


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Lock a folder for this run. InputError if another run uses it. All processes of a run count as one."""
    if rank():
        yield
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"the same training already runs in {folder}: wait for it to end") from None
        except OSError:  # a file system that can't lock folders
            pass
        yield
    finally:
        os.close(handle)


def count() -> int:
    """The number of processes; 1 without torchrun."""
    return int(os.environ.get(COUNT, "1"))


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ.get(RANK, "0")) if count() > 1 else 0


def shard(program: nn.Module, parts: nn.ModuleList) -> None:
    """If there are several processes, distribute the parameters: one group per layer, and one for the rest."""
    if count() == 1:
        return
    from torch.distributed import init_process_group, is_initialized
    from torch.distributed.fsdp import fully_shard

    if not is_initialized():
        init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    for part in list(parts)[1:-1]:
        if any(True for _ in part.parameters()):
            fully_shard(part)
    fully_shard(program)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, which may be distributed; every process must call this."""
    gather: Any = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def fill(tensor: Tensor, values: Tensor) -> None:
    """Set a tensor, which may be distributed, to the values of the whole tensor."""
    mesh: Any = getattr(tensor, "device_mesh", None)
    if mesh is not None:
        from torch.distributed.tensor import distribute_tensor

        shared: Any = tensor
        values = distribute_tensor(values, mesh, shared.placements)
    with torch.no_grad():
        tensor.copy_(values)


def total(value: float) -> float:
    """The sum of a number over all processes."""
    if count() == 1:
        return value
    from torch.distributed import all_reduce

    summed = torch.tensor(value, dtype=torch.float64)
    all_reduce(summed)
    return float(summed)


def wait() -> None:
    """Wait until all processes have called this."""
    if count() > 1:
        from torch.distributed import barrier

        barrier()
