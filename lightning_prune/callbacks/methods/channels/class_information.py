"""What channels tell of the labels: total and within-class variance of their pooled outputs, over all ranks."""

from __future__ import annotations

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lightning_prune.channels.select.scales import ScaleFactors


class LabelStatistics:
    """Sums over the inputs of norms by label, and what they come to.

    Args:
        factors: the scale factors of the norms.
    """

    def __init__(self, factors: ScaleFactors) -> None:
        self._factors = factors
        self._tables: dict[str, Tensor] = {}  # [labels, 1 + 2·channels]: samples, Σ pooled, Σ pooled²

    def add(self, name: str, activation: Tensor, labels: Tensor | None) -> None:
        """Take a batch in.

        Args:
            name: of the norm.
            activation: its input, [N, C, ...].
            labels: int64 [N].

        Raises:
            ValueError: there are no such labels.
        """
        if labels is None or labels.ndim != 1 or labels.is_floating_point():
            raise ValueError(
                "information='labels' needs class labels [N] with each batch, and found none. Override "
                "`calibration_forward` of the callback to return (output, labels), or use 'gaussian'."
            )
        pooled = _pool(activation)
        rows = torch.cat([pooled.new_ones(len(pooled), 1), pooled, pooled * pooled], 1)
        table = rows.new_zeros(int(labels.max()) + 1, rows.shape[1]).index_add_(0, labels.long(), rows)
        self._tables[name] = _sum(self._tables.get(name, table[:0]), table)

    @torch.no_grad()
    def reduced(self, trainer: Trainer) -> tuple[Tensor, Tensor]:
        """Variance of each group's normalised, spatially pooled output, and its mean within the labels; starts anew.

        Both are in units of the mean total variance of the norm, so that 1 is a typical channel's.

        Returns:
            (total, within), float32 [groups of the factors] each.

        Raises:
            ValueError: nothing was taken in.
        """
        if not self._tables:
            raise ValueError(
                "information='labels' needs recalibrate_batches > 0 and a training loader that can be read."
            )
        tables, self._tables = self._tables, {}
        size = torch.tensor(max(map(len, tables.values())), device=next(iter(tables.values())).device)
        size = trainer.strategy.reduce(size, reduce_op="max")  # type: ignore[assignment]
        totals, withins = [], []
        for name in self._factors.names:
            table = _sum(tables[name], tables[name].new_zeros(int(size), tables[name].shape[1]))
            total, within = _variances(trainer.strategy.reduce(table, reduce_op="sum").double())  # type: ignore[union-attr]
            level = total.mean().clamp_min(1e-12)
            totals.append(total / level)
            withins.append(within / level)
        return self._per_group(torch.cat(totals)), self._per_group(torch.cat(withins))

    def _per_group(self, values: Tensor) -> Tensor:
        """Mean over the factors of each group, float32."""
        factors = self._factors
        total = values.new_zeros(len(factors.groups) + 1).index_add_(0, factors.slot, values)[:-1]
        return (total / factors.members).float()


def _sum(first: Tensor, second: Tensor) -> Tensor:
    """The sum of two tables, of which one may have fewer labels."""
    out = second.new_zeros(max(len(first), len(second)), second.shape[1])
    out[: len(first)] += first
    out[: len(second)] += second
    return out


def _pool(x: Tensor) -> Tensor:
    """Normalised over the batch and pooled over space, float32 [N, C]."""
    x = x.float().flatten(2) if x.ndim > 2 else x.float().unsqueeze(2)
    mean, var = x.mean((0, 2), keepdim=True), x.var((0, 2), unbiased=False, keepdim=True)
    return ((x - mean) / (var + 1e-5).sqrt()).mean(2)


def _variances(table: Tensor) -> tuple[Tensor, Tensor]:
    """(total, mean within a label), [channels] each, from the sums of each label."""
    table = table[table[:, 0] > 0]
    count, (first, second) = table[:, :1], table[:, 1:].chunk(2, 1)
    n = count.sum()
    square = second.sum(0) / n
    total = square - (first.sum(0) / n).square()
    within = square - (first.square() / count).sum(0) / n
    return total.clamp_min(0), within.clamp_min(0)
