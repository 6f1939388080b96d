"""What a check changes in a model's numbers, so that none of them hides a mistake, and to see how far rounding goes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_prune.channels.verify.tensors import Stays, Step
from lightning_prune.plan.cut import Cut
from lightning_prune.plan.plan import PruningPlan


def without_zeros(model: nn.Module, plan: PruningPlan) -> Step:
    """Nothing is zero throughout.

    A scale factor of zero (a zero-initialised last norm, a pruned channel) hides every mistake behind it, so there are
    ones there, and small random numbers in rows of weights (and in vectors) that are zero throughout, and where weights
    that read a channel that goes are. Channels that are to go have a scale and a shift of one: a trained network may
    have closed its ReLU on them.
    """
    paths = [name for name, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    norms = {f"{path}.weight" for path in paths}
    stays = Stays()
    going = {
        name: ~stays.mask(plan.cuts[name].kept[0], plan.cuts[name].shape[0])
        for path in paths
        for name in (f"{path}.weight", f"{path}.bias")
        if name in plan.cuts and 0 in plan.cuts[name].kept
    }
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    silent: dict[str, list[tuple[int, Tensor]]] = {}  # a check looks at every weight several times

    def step(name: str, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() or tensor.numel() == 0:
            return tensor
        if name in going:
            tensor = tensor.masked_fill(going[name].to(tensor.device), 1.0)
        if name in norms:
            return tensor.masked_fill(tensor == 0, 1.0)
        if name not in parameters or not tensor.ndim:
            return tensor
        if name not in silent:
            silent[name] = _silent(tensor, plan.cuts.get(name))
        for dim, off in silent[name]:
            tensor = _filled(tensor, dim, off)
        return tensor

    return step


def _silent(tensor: Tensor, cut: Cut | None) -> list[tuple[int, Tensor]]:
    """(dim, bool [its length]) of what is zero throughout: rows, and what reads a channel that goes."""
    if tensor.ndim == 1:
        return [] if bool(tensor.any()) else [(0, torch.ones_like(tensor, dtype=torch.bool))]
    dims = {0, *(cut.kept if cut is not None else ())}
    if all(bool(_first_of_each(tensor, dim).all()) for dim in dims):
        return []
    low, high = tensor.flatten(1).aminmax(dim=1)
    found = [(0, (low == 0) & (high == 0))]
    for dim, kept in cut.kept.items() if cut is not None else ():
        if dim:  # what reads a channel that goes may have been trained, or folded, to zero
            others = [d for d in range(tensor.ndim) if d != dim]
            off = torch.linalg.vector_norm(tensor, torch.inf, others) == 0
            off &= not bool(found[0][1].any())  # rows of noise are nowhere zero
            off[list(kept)] = False
            found.append((dim, off))
    return [(dim, off) for dim, off in found if bool(off.any())]


def _first_of_each(tensor: Tensor, dim: int) -> Tensor:
    """One number of each row, column or what else a dim counts."""
    for other in reversed([d for d in range(tensor.ndim) if d != dim]):
        tensor = tensor.select(other, 0)
    return tensor


def _filled(tensor: Tensor, dim: int, off: Tensor) -> Tensor:
    """Small random numbers at the indices of a dim where ``off``, bool, says so: the same each time, for any name."""
    if not bool(off.any()):
        return tensor
    where = off.nonzero().flatten()
    generator = torch.Generator().manual_seed(1)
    shape = tensor.index_select(dim, where).shape
    noise = 0.1 * torch.randn(shape, generator=generator, dtype=torch.float64)
    return tensor.index_copy(dim, where, noise.to(tensor))


def shaken(model: nn.Module) -> Step:
    """Small positive random numbers are added to every vector of parameters.

    Masked is sliced whatever the numbers are, and a vector of next to nothing (the layer scale or the bias of a fresh
    network) would hide mistakes from float32. Positive, as they are to open what a ReLU closes, and not to close it.
    """
    named = list(model.named_parameters(remove_duplicate=False))
    vectors = {name for name, p in named if p.is_floating_point() and 0 < p.numel() == max(p.shape, default=1)}
    longest = max((p.numel() for name, p in named if name in vectors), default=0)
    noise = 0.1 * torch.randn(longest, generator=torch.Generator().manual_seed(2)).abs()

    def step(name: str, tensor: Tensor) -> Tensor:
        return tensor + noise[: tensor.numel()].view(tensor.shape).to(tensor) if name in vectors else tensor

    return step


def rounded(name: str, tensor: Tensor) -> Tensor:
    """Every number is moved by about one unit in the last place."""
    if not tensor.is_floating_point():
        return tensor
    generator = torch.Generator().manual_seed(3)
    sign = torch.randint(0, 2, tensor.shape, generator=generator).to(tensor) * 2 - 1
    return tensor * (1 + sign * torch.finfo(tensor.dtype).eps)
