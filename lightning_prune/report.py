"""Where the zeros are: a per-layer and total report, counted on the weights that the network actually uses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_prune.masks.shards import local, shards_of
from lightning_prune.masks.targets import prunable_weights
from lightning_prune.plan.plan import PruningPlan
from lightning_prune.plan.record import plans_of
from lightning_prune.support.table import Shown, Table, percent


@dataclass(frozen=True)
class LayerSparsity:
    """Zeros of one prunable weight."""

    name: str
    shape: tuple[int, ...]
    numel: int
    zeros: int

    @property
    def sparsity(self) -> float:
        return self.zeros / self.numel if self.numel else 0.0  # a layer of a removed branch


@dataclass(frozen=True)
class SparsityReport(Shown):
    """Zeros of a model's prunable weights, per layer and in all. ``print`` shows a table.

    Of a compact model, everything but `dense_compression` counts the weights that are left; `removed` says how many of
    these layers' weights went with their channels and ranks.
    """

    layers: tuple[LayerSparsity, ...]
    parameters: int
    removed: int = 0

    @property
    def prunable(self) -> int:
        """Conv and linear weights, tied ones once."""
        return sum(layer.numel for layer in self.layers)

    @property
    def zeros(self) -> int:
        """Zeros among them."""
        return sum(layer.zeros for layer in self.layers)

    @property
    def sparsity(self) -> float:
        """Share of zeros among the prunable weights."""
        return self.zeros / self.prunable if self.prunable else 0.0

    @property
    def compression(self) -> float:
        """Prunable weights / non-zero ones; infinite if none is left."""
        return _ratio(self.prunable, self.prunable - self.zeros)

    @property
    def dense_compression(self) -> float:
        """Prunable weights of the dense model / those that are left and not zero; infinite if none is."""
        return _ratio(self.prunable + self.removed, self.prunable - self.zeros)

    def table(self) -> Table:
        """A row a weight, and the totals."""
        rows = [(x.name, "x".join(map(str, x.shape)), x.numel, x.zeros, x.sparsity) for x in self.layers]
        rows.append(("total (prunable)", "", self.prunable, self.zeros, self.sparsity))
        dense = f" ({self.dense_compression:.2f}x against the dense model)" if self.removed else ""
        below = [f"compression {self.compression:.2f}x{dense}; {self.parameters:,} parameters in all"]
        if self.removed:
            below.append(f"compact: {self.prunable:,} of {self.prunable + self.removed:,} prunable weights are left")
        cells = [(n, shape, f"{k:,}", f"{z:,}", percent(share)) for n, shape, k, z, share in rows]
        return Table(("weight", "shape", "weights", "zeros", "sparsity"), cells, below=below, left=2, total=True)


def _ratio(weights: int, left: int) -> float:
    return weights / left if left else float("inf")


@torch.no_grad()
def sparsity_report(
    model: nn.Module, include: Sequence[str] | None = None, exclude: Sequence[str] | None = None
) -> SparsityReport:
    """Count the zeros of a model's conv and linear weights.

    Counted on the weights that the forward reads: masks of a running callback, ``torch.nn.utils.prune`` and
    parametrizations included. A tied or shared weight counts once. BatchNorm, biases and embeddings never count. Of
    weights in shards (`fully_shard`), all processes must call this.

    Args:
        model: any module.
        include: fnmatch patterns on parameter or module names, whole or from any dot on; None takes all.
        exclude: patterns to leave out.

    Raises:
        ValueError: the model has no conv or linear weight, or a pattern matches none.
    """
    layers = tuple(
        LayerSparsity(name, tuple(weight.shape), weight.numel(), count_zeros(weight))
        for name, weight in prunable_weights(model, include, exclude)
    )
    parameters = sum(p.numel() for p in model.parameters())
    return SparsityReport(layers, parameters, removed_weights(layers, plans_of(model)))


def removed_weights(layers: Sequence[LayerSparsity], plans: Mapping[str, PruningPlan]) -> int:
    """How many weights of these layers went with channels and ranks. plans: {path of the compact part: its plan}."""
    names, removed = {layer.name for layer in layers}, 0
    for path, plan in plans.items():
        start = f"{path}." if path else ""
        factors = {f"{p}.weight": f for p, f in plan.factors.items() if f.shapes(start + p).keys() <= names}
        cuts = [cut for name, cut in plan.cuts.items() if start + name in names or name in factors]
        removed += sum(math.prod(cut.shape) - math.prod(cut.new_shape) for cut in cuts)
        removed += sum(factor.removed for factor in factors.values())
    return removed


def count_zeros(weight: Tensor) -> int:
    """Exact zeros in a tensor; in the whole of one that is in shards, for which all processes must ask."""
    kept = shards_of([weight], ["the weight"]).total(torch.count_nonzero(local(weight)))
    return weight.numel() - int(kept)
