"""Processes, sharding and sums over ranks."""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import default_pg_timeout
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor

from rollout.decoder import Decoder
from rollout.mistakes import tell
from trainer.incarnation import store_of_this_start
from trainer.mistakes import end_at_once, leave_it_to_rank_0
from trainer.stop import Stop

_NCCL_HAS_FAILED = "exception_dump"  # kStoreDumpKey of torch's ProcessGroupNCCL.hpp


@dataclass(frozen=True, slots=True)
class World:
    """This process among its peers."""

    rank: int
    size: int
    device: torch.device
    mesh: DeviceMesh
    stop: Stop = field(default_factory=Stop)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def store(self) -> dist.Store:
        """The key-value store by which the processes found each other; it lasts until they end, or start again."""
        return distributed_c10d._get_default_store()

    def sums(self, values: dict[str, float]) -> dict[str, float]:
        """Sums every value over the ranks; all ranks pass the same keys."""
        tensor = torch.tensor(list(values.values()), dtype=torch.float64)
        if self.size > 1:
            tensor = tensor.to(self.device)
            dist.all_reduce(tensor)
        return dict(zip(values, tensor.tolist(), strict=True))

    def maximum(self, value: int) -> int:
        tensor = torch.tensor(value, device=self.device)
        if self.size > 1:
            dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return int(tensor)

    def is_any(self, value: bool) -> bool:
        """Whether it is true on any rank. By way of the CPU: nobody waits for a GPU."""
        if self.size == 1:
            return value
        tensor = torch.tensor(int(value))
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return bool(tensor)

    def pause(self) -> None:
        """A point that all ranks reach together, in the midst of a step: here a run that is asked to end may leave."""
        if self.stop.on_pause is not None:
            self.stop.on_pause()

    def gather(self, item: object) -> list:
        """One picklable object per rank, in rank order, on every rank."""
        if self.size == 1:
            return [item]
        items: list = [None] * self.size
        dist.all_gather_object(items, item)
        return items

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """A mistake that any rank meets inside ends all of them, and the first such rank tells it.

        Nobody waits for a peer that has left, and nobody leaves before the line is out: torchrun stops all processes
        as soon as one has left.
        """
        error = None
        try:
            yield
        except (ValueError, OSError) as caught:
            error = caught
        failed = [rank for rank, has_failed in enumerate(self.gather(error is not None)) if has_failed]
        if failed and self.size == 1:
            raise error
        if failed:
            if self.rank == failed[0]:
                tell(error)
            self.gather(None)  # the line is out
            raise SystemExit(1)

    def share(self, items: list) -> list:
        """This rank's strided share of a list that all ranks hold."""
        return items[self.rank :: self.size]


def keep_freed_memory() -> None:
    """Tells glibc to keep what is freed: on virtual machines, memory touched for the first time is slow."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # other C libraries have no such setting
        trim_threshold, mmap_threshold = -1, -3
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_threshold, 1 << 30)


@contextmanager
def world(num_processes: int = 0, shard_size: int = 0) -> Iterator[World]:
    """Joins the process group that torchrun describes, or makes a group of one.

    Args:
        num_processes: that must have been started; 0: any number.
        shard_size: processes that hold one copy of the weights together; 0: all.

    Raises:
        ValueError: the recipe asks for another number of processes than were started, or for shards that do not divide
            it, or there are too few GPUs, or a node whose name means itself alone.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    local_rank, local_size = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if num_processes not in (0, size):
        error = ValueError(
            f"num_processes: the recipe asks for {num_processes} processes and {size} are running; "
            f"start it with torchrun --nproc-per-node N so that nodes x N = {num_processes}"
        )
        if rank:
            leave_it_to_rank_0(error)
        raise error
    if size % (shard_size or size):
        error = ValueError(f"model.shard_size={shard_size} does not divide the {size} processes that are running")
        if rank:
            leave_it_to_rank_0(error)
        raise error
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda" and local_size > torch.cuda.device_count():
        error = ValueError(f"this node runs {local_size} processes and has {torch.cuda.device_count()} GPUs")
        if local_rank:
            leave_it_to_rank_0(error)
        raise error
    if kind == "cpu":
        keep_freed_memory()
    device = torch.device(kind, local_rank) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
    if "MASTER_ADDR" in os.environ:
        found, _, _ = next(rendezvous("env://", timeout=default_pg_timeout))
        found.set_timeout(default_pg_timeout)
        if rank == 0:  # before any other rank goes on
            # Left by a rank whose NCCL failed, in torchrun's store, which outlives a restart; and past all prefixes, so
            # that NCCL would find it there and end the processes of the next start, too, minutes after it.
            found.delete_key(_NCCL_HAS_FAILED)
        store = store_of_this_start(found, rank, size)
        if error := _loopback_among_nodes(store, rank, size, socket.gethostname(), _address_of_gloo()):
            if rank:
                leave_it_to_rank_0(error)
            raise error
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    has_failed = False
    try:
        yield World(rank, size, device, _mesh(kind, size, shard_size or size))
    except (Exception, KeyboardInterrupt):
        has_failed = size > 1  # alone: where all ranks leave together, it is by SystemExit
        raise
    finally:
        if has_failed:
            # NCCL would wait here for peers that wait for this rank: nobody would hear of what it has met, such as too
            # little memory, before half an hour has passed. torchrun stops them.
            atexit.register(end_at_once, 1)
        else:
            dist.destroy_process_group()


def _address_of_gloo() -> str:
    """Where gloo will listen: at the first address of the host's name that is this machine's, or else at the loopback;
    empty: at an interface that it is told."""
    if "GLOO_SOCKET_IFNAME" in os.environ:
        return ""
    with suppress(OSError):
        for family, kind, protocol, _, address in socket.getaddrinfo(socket.gethostname(), 0, type=socket.SOCK_STREAM):
            with suppress(OSError), socket.socket(family, kind, protocol) as probe:
                probe.bind(address)
                return address[0]
    return "127.0.0.1"


def _loopback_among_nodes(store: dist.Store, rank: int, size: int, host: str, address: str) -> ValueError | None:
    """What all ranks find wrong if gloo listens on a loopback and there are other nodes: they would look for it at
    their own, for half an hour."""
    store.set(f"host/{rank}", json.dumps([host, address]))
    hosts = dict(json.loads(store.get(f"host/{rank}")) for rank in range(size))
    unseen = [(name, where) for name, where in hosts.items() if where.startswith("127.") or where == "::1"]
    if len(hosts) == 1 or not unseen:
        return None
    return ValueError(
        f"{unseen[0][0]}: its own name is {unseen[0][1]} to it (/etc/hosts), where no other node finds it; "
        "set GLOO_SOCKET_IFNAME on each node to its network's interface, such as eth0"
    )


def _mesh(kind: str, size: int, shard_size: int) -> DeviceMesh:
    """All processes in one row, or several rows of `shard_size` that hold the same. Neighbours, of one node, share."""
    if shard_size == size:
        return init_device_mesh(kind, (size,))
    return init_device_mesh(kind, (size // shard_size, shard_size), mesh_dim_names=("replicate", "shard"))


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor; of one that is not sharded, all of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shard_(decoder: Decoder, mesh: DeviceMesh, compute_dtype: torch.dtype) -> Decoder:
    """FSDP2 in place: one unit per block, one of norm and head, one of the embedding; the last two stay gathered
    through a micro-batch. A head that is the embedding is in its unit.

    Over a mesh of two dimensions weights are sharded along the second and equal along the first. Gradients are summed
    over ranks, not averaged: every loss in this project is normalised by global counts.
    """
    # Inputs need no cast: activations have the compute type from the embedding on, and blocks cast rotary tables.
    policy = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in decoder.layers:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    if decoder.head.weight is not decoder.embed_tokens.weight:
        fully_shard([decoder.norm, decoder.head], mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    fully_shard(decoder, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    for unit in decoder.modules():
        if isinstance(unit, FSDPModule) and mesh.size() > 1:  # a process of its own would divide by 1, in a pass
            unit.set_gradient_divide_factor(1.0)
            unit.set_force_sum_reduction_for_comms(True)  # gloo has no pre-scaled sum
    return decoder
