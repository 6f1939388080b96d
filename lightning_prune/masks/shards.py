"""Weights whose rows lie on several processes (`fully_shard`, DTensor): this process's part, and sums over all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Shard

from lightning_prune.functional.order.kth import WHOLE, Shards


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, detached and sharing its memory; a tensor that is whole is its own part."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def part(whole: Tensor, like: Tensor) -> Tensor:
    """This process's rows of a tensor that every process has whole, as ``like`` is split; all if it is not."""
    if not isinstance(like, DTensor):
        return whole
    rank, parts = like.device_mesh.get_local_rank(), whole.chunk(like.device_mesh.size())
    return parts[rank] if rank < len(parts) else whole[:0]


def shards_of(tensors: Sequence[Tensor], names: Sequence[str]) -> Shards:
    """How tensors lie over processes: whole, or all split by rows over one group of processes.

    Raises:
        NotImplementedError: they lie in another way, such as by columns (tensor parallelism), or not all alike.
    """
    meshes = [t.device_mesh if isinstance(t, DTensor) else None for t in tensors]
    mesh = meshes[0] if meshes else None
    for name, tensor, other in zip(names, tensors, meshes, strict=True):
        if other != mesh:
            raise NotImplementedError(
                f"{name} is not split over processes as {names[0]} is. Give every weight that is pruned to fully_shard "
                "on one mesh (a call on the whole network takes what calls on its parts left), or exclude it."
            )
        if isinstance(tensor, DTensor) and tuple(tensor.placements) != (Shard(0),):
            raise NotImplementedError(
                f"{name} lies over processes as {tensor.placements}: weights can be pruned that fully_shard has split "
                "by rows over a mesh of one dimension. Use data parallelism alone (tensor_parallel_size=1)."
            )
    if mesh is None:
        return WHOLE
    group = mesh.get_group()

    def total(x: Tensor) -> Tensor:
        summed = x.clone()
        torch.distributed.all_reduce(summed, group=group)
        return summed

    return Shards(mesh.get_local_rank(), mesh.size(), total)


def reshard(root: nn.Module) -> None:
    """Free what is gathered of the modules below ``root``: parameters are shards again, and gathered anew when used."""
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
