"""What channels tell of the labels: total and within-class variance of their pooled outputs, over all ranks."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from lightning_prune.callbacks.recalibrate import Forward, calibration_batches
from lightning_prune.channels.select.scales import ScaleFactors
from lightning_prune.support.modes import mode


@torch.no_grad()
def measure(
    trainer: Trainer, module: LightningModule, network: nn.Module, factors: ScaleFactors, batches: int, forward: Forward
) -> tuple[Tensor, Tensor]:
    """Variance of each class's normalised, spatially pooled output, and its mean within the labels.

    Both are in units of the mean total variance of the norm, so that 1 is a typical channel's.

    Args:
        trainer: gives batches and precision, and sums over ranks.
        module: is run on them in eval mode.
        network: holds the norms.
        factors: its scale factors.
        batches: training batches to use.
        forward: runs the module on a batch; must return labels, int64 [N].

    Returns:
        (total, within), [classes] each.

    Raises:
        ValueError: there are no batches, or no labels.
    """
    pooled: dict[str, Tensor] = {}
    handles = []
    for name in factors.names:
        norm = network.get_submodule(name)

        def note(_: nn.Module, args: tuple[Any, ...], name: str = name) -> None:
            pooled[name] = _pool(args[0])

        handles.append(norm.register_forward_pre_hook(note))
    sums: list[Tensor] = []  # [labels, 1 + 2·factors]: samples, Σ pooled, Σ pooled²
    try:
        with mode(module, False), trainer.precision_plugin.forward_context():
            for batch in calibration_batches(trainer, batches):
                _, labels = forward(module, batch)
                if labels is None or labels.ndim != 1 or labels.is_floating_point():
                    raise ValueError(
                        "information='labels' needs class labels [N] with each batch, and found none. Override "
                        "`calibration_forward` of the callback to return (output, labels), or use 'gaussian'."
                    )
                flat = torch.cat([pooled[name] for name in factors.names], 1)
                rows = torch.cat([flat.new_ones(len(flat), 1), flat, flat * flat], 1)
                sums.append(_by_label(rows, labels))
    finally:
        for handle in handles:
            handle.remove()
    if not sums:
        raise ValueError("information='labels' needs recalibrate_batches > 0 and a training loader that can be read.")
    size = int(trainer.strategy.reduce(torch.tensor(max(map(len, sums)), device=module.device), reduce_op="max"))
    table = torch.zeros(size, sums[0].shape[1], device=module.device, dtype=torch.float32)
    for part in sums:
        table[: len(part)] += part
    table = trainer.strategy.reduce(table, reduce_op="sum").double()
    table = table[table[:, 0] > 0]
    total, within = _variances(table)
    per_norm = [p.numel() for p in factors.params]
    level = torch.cat([part.mean().clamp_min(1e-12).expand(len(part)) for part in total.split(per_norm)])
    return _per_class(total / level, factors), _per_class(within / level, factors)


def _pool(x: Tensor) -> Tensor:
    """Normalised over the batch and pooled over space, float32 [N, C]."""
    x = x.float().flatten(2) if x.ndim > 2 else x.float().unsqueeze(2)
    mean, var = x.mean((0, 2), keepdim=True), x.var((0, 2), unbiased=False, keepdim=True)
    return ((x - mean) / (var + 1e-5).sqrt()).mean(2)


def _by_label(rows: Tensor, labels: Tensor) -> Tensor:
    """Sums of rows of equal label, [labels, columns]."""
    return rows.new_zeros(int(labels.max()) + 1, rows.shape[1]).index_add_(0, labels.long(), rows)


def _variances(table: Tensor) -> tuple[Tensor, Tensor]:
    """(total, mean within a label), [columns] each, from the sums of each label."""
    count, (first, second) = table[:, :1], table[:, 1:].chunk(2, 1)
    n = count.sum()
    square = second.sum(0) / n
    total = square - (first.sum(0) / n).square()
    within = square - (first.square() / count).sum(0) / n
    return total.clamp_min(0), within.clamp_min(0)


def _per_class(values: Tensor, factors: ScaleFactors) -> Tensor:
    """Mean over the factors of each class, float32."""
    total = values.new_zeros(len(factors.groups) + 1).index_add_(0, factors.slot, values)[:-1]
    return (total / factors.members).float()
