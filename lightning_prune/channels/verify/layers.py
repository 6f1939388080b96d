"""Where a masked and a sliced model part: the outputs of their layers, channel by channel."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils import _pytree as pytree

from lightning_prune.plan.cut import Cut
from lightning_prune.plan.plan import PruningPlan

Seen = dict[tuple[str, int], Tensor]
"""{(path, call): sum of |output| by channel, [channels]} of the modules that have parameters of their own."""


@contextlib.contextmanager
def watched(model: nn.Module) -> Iterator[Seen]:
    """Fills what it gives with what the modules put out inside."""
    seen: Seen = {}
    calls: Counter[str] = Counter()
    paths = {id(module): path for path, module in model.named_modules() if any(module._parameters)}

    def note(module: nn.Module, args: Any, out: Any) -> None:
        path = paths.get(id(module))
        leaves = (out,) if isinstance(out, Tensor) else pytree.tree_leaves(out) if path is not None else ()
        found = next((t for t in leaves if isinstance(t, Tensor) and t.is_floating_point()), None)
        if path is None or found is None or found.ndim < 2:
            return
        seen[path, calls[path]] = _sums(module, found.detach())
        calls[path] += 1

    handle = register_module_forward_hook(note)  # one for all: a handle for each takes longer than the sums
    try:
        yield seen
    finally:
        handle.remove()


def first_apart(
    expected: Mapping[tuple[str, int], Tensor], found: Mapping[tuple[str, int], Tensor], plan: PruningPlan,
    tolerance: float,
) -> str | None:  # fmt: skip
    """The path of the first module that gives something else when sliced in the channels that stay; None if none does.

    Args:
        expected: of the masked model, in the order in which the modules ended.
        found: of the sliced model; what it lacks is not looked at.
        tolerance: largest allowed difference, relative to the largest sum of the layer.
    """
    cuts: dict[str, list[Cut]] = {}
    for name, cut in plan.cuts.items():
        cuts.setdefault(name.rpartition(".")[0], []).append(cut)
    for key, reference in expected.items():
        mine = found.get(key)
        if mine is None or len(mine) == 0:  # a layer without channels
            continue
        wanted = _left(reference, len(mine), cuts.get(key[0], ()))
        if wanted is None:
            return key[0]
        gap, scale = (wanted - mine).abs().amax(), wanted.abs().amax()
        if not float(gap) <= tolerance * float(scale):  # NaN is apart
            return key[0]
    return None


def _left(sums: Tensor, size: int, cuts: Iterable[Cut]) -> Tensor | None:
    """Of the channels of a masked layer those that the cuts of its tensors leave; None if they leave not so many."""
    for cut in cuts:
        for dim, kept in cut.kept.items():
            if cut.shape[dim] == len(sums) and len(kept) == size:
                return sums[torch.tensor(kept, dtype=torch.int64, device=sums.device)]
    return sums if len(sums) == size else None


def _sums(module: nn.Module, out: Tensor) -> Tensor:
    """Sums, as removed channels add nothing where the channels of an output are not where they are looked for."""
    norm = getattr(module, "normalized_shape", ()) if _has(module, "normalized_shape") else ()
    last = _has(module, "in_features") or (norm and out.shape[-1] == norm[-1])
    if out.ndim == 3 and not (_has(module, "kernel_size") or _has(module, "num_features")):
        last = True  # tokens
    channel = out.ndim - 1 if last else 1
    return out.abs().sum([d for d in range(out.ndim) if d != channel])


def _has(module: nn.Module, name: str) -> bool:
    """As `hasattr`, which takes long to find that a module has no such attribute."""
    return name in vars(module) or hasattr(type(module), name)
