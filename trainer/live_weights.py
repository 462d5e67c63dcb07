"""The engine's weights are the trainer's: shared where they can be, and compared before every use.

P parameters of a decoder
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.distributed.tensor import DTensor

from rollout.decoder import Decoder
from trainer.distributed import World, local
from trainer.mistakes import Halt

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes


@torch.no_grad()
def share_weights_(replica: Decoder, trained: Decoder) -> None:
    """Makes a decoder run on the memory of a sharded one of a single process, and says that its weights are new.

    A shard of one process is the whole parameter, in the master's type: nothing is copied.
    """
    ours: dict[int, nn.Parameter] = {}  # a tied head stays tied
    for name, parameter in trained.named_parameters(remove_duplicate=False):
        if id(parameter) not in ours:
            shard, mine = parameter.to_local(), replica.get_parameter(name)
            # While the old memory is held here no other weights lie in it, so another place means other weights.
            is_there = mine.data_ptr() == shard.data_ptr()
            ours[id(parameter)] = mine if is_there else nn.Parameter(shard, requires_grad=False)
        module, _, leaf = name.rpartition(".")
        setattr(replica.get_submodule(module), leaf, ours[id(parameter)])
    # By this count the engine sees that weights have changed where they are; an optimiser's writes do not raise it.
    increment_version(list(ours.values()))


@torch.no_grad()
def refuse_stale_weights(replica: Decoder, trained: Decoder, world: World) -> None:
    """Compares what every rank's engine runs with what is trained, in the engine's type; every rank calls it.

    Sums of the bits as integers, modulo 2**64: they have no order, so sums of shards add up to that of the whole. One
    pass over the weights, where they lie.

    Raises:
        Halt: a rank's replica is not what is trained.
    """
    dtype = next(replica.parameters()).dtype
    trained_P = _bit_sums([local(p).to(dtype) for p in trained.parameters()])
    if world.size > 1:
        dist.all_reduce(trained_P)
    copies_P = torch.tensor([_num_copies(p) for p in trained.parameters()], device=trained_P.device)
    is_other_P = _bit_sums(list(replica.parameters())) * copies_P != trained_P
    if world.is_any(bool(is_other_P.any())):
        names = [name for name, _ in replica.named_parameters()]
        told = [[names[i] for i in found] for found in world.gather(is_other_P.nonzero().flatten().tolist())]
        ranks = [rank for rank, found in enumerate(told) if found]
        raise Halt(
            f"the engine of rank {', '.join(map(str, ranks))} does not run the trainer's weights "
            f"({told[ranks[0]][0]} and {len(told[ranks[0]]) - 1} more differ); nothing was drawn from it"
        )


def _bit_sums(tensors: list[Tensor]) -> Tensor:
    return torch.stack([x.view(_INTEGERS[x.element_size()]).sum(dtype=torch.int64) for x in tensors])


def _num_copies(parameter: Tensor) -> int:
    """How many ranks hold each element."""
    if not isinstance(parameter, DTensor):
        return 1
    sizes = zip(parameter.device_mesh.shape, parameter.placements, strict=True)
    return math.prod(size for size, placement in sizes if placement.is_replicate())
