"""Several processes that share one piece of work, started by ``torchrun``."""

from __future__ import annotations

import datetime
import importlib
import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from rdc.execution.peers import Peers, seconds_of_silence

__all__ = ["by_the_first", "from_the_first", "is_first_process", "leave_processes", "peers", "start_processes"]

_T = TypeVar("_T")

_peers: Peers | None = None


def start_processes(device: str = "cpu", timeout: float = 1800.0) -> torch.device:
    """Join the process group when started by ``torchrun``; do nothing otherwise.

    Args:
        device: "cpu" or "cuda"; under ``torchrun`` each process takes the GPU of its local rank.
        timeout: seconds that processes wait for each other before they give up.

    Returns:
        The device of this process.
    """
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several and torch.device(device).type == "cuda":
        device = f"cuda:{int(os.environ.get('LOCAL_RANK', '0'))}"
        torch.cuda.set_device(device)
    if several and not dist.is_initialized():
        # Its functions have `group=group.WORLD` as a default value. Imported after init_process_group (by torch.optim, through
        # torch._dynamo) they would keep the group alive past destroy_process_group: gloo's threads then still hold tensors
        # while the interpreter ends, which now and then aborts the process.
        importlib.import_module("torch.distributed.nn.functional")
        backend = "nccl" if torch.device(device).type == "cuda" else "gloo"
        _join(backend, datetime.timedelta(seconds=timeout))
    return torch.device(device)


def _join(backend: str, timeout: datetime.timedelta) -> None:
    """Join the process group, and begin to give signs of life in its store.

    ``torchrun --max-restarts`` starts all processes again on the store that it has: each start has keys of its own, or processes would
    look for those of the start before.
    """
    global _peers
    store, rank, count = next(rendezvous("env://", timeout=timeout))
    store.set_timeout(timeout)
    start = PrefixStore(f"rdc/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    dist.init_process_group(backend, store=start, rank=rank, world_size=count, timeout=timeout)
    _peers = Peers(PrefixStore("peers", start), rank, count, seconds_of_silence())


def is_first_process() -> bool:
    """Whether this process is the first of those that share the work, or the only one; one that is dead is the first no more."""
    if _peers is not None:
        return _peers.is_first
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def leave_processes() -> None:
    """Leave the process group that :func:`start_processes` joined, if any."""
    global _peers
    if _peers is not None:
        _peers.leave()
        _peers = None
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def from_the_first(value: Any) -> Any:
    """What the first process has, in every process that shares the work; each must ask for it."""
    if not (dist.is_available() and dist.is_initialized()):
        return value
    found = [value]
    dist.broadcast_object_list(found, src=0)
    return found[0]


def by_the_first(make: Callable[[], _T]) -> _T | None:
    """What the first process makes, in that process, and None in the others, once it is made; each must ask for it.

    Where the first process dies before, another makes it, and is the first from then on.

    Raises:
        Exception: what ``make`` raised in the first process, in every process.
    """
    sharing = peers()
    return make() if sharing is None else sharing.by_the_first(make)


def peers() -> Peers | None:
    """The processes that share the work, those of a group that somebody else made included; None where there is one alone."""
    global _peers
    if _peers is None and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        store = PrefixStore("rdc/peers", distributed_c10d._get_default_store())
        _peers = Peers(store, dist.get_rank(), dist.get_world_size(), seconds_of_silence())
    return _peers
