"""Meeting a budget of kept weights: exactly at the hard prune, and on the way to it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_prune.errors import BudgetError


def one_target(sparsity: float | None, compression: float | None) -> float | None:
    """The target as a sparsity, from whichever of the two was given.

    Raises:
        ValueError: both are given, or one is out of its range.
    """
    if sparsity is not None and compression is not None:
        raise ValueError(
            f"target_sparsity={sparsity} and target_compression={compression} say the same thing: give one of them."
        )
    if compression is not None:
        if not 1 <= compression < math.inf:
            raise ValueError(f"target_compression={compression} must be at least 1 (10 keeps a tenth of the weights).")
        return 1 - 1 / compression
    if sparsity is not None and not 0 <= sparsity < 1:
        raise ValueError(
            f"target_sparsity={sparsity} must be at least 0 and below 1: 0.9 prunes 90 % of the weights, "
            "1.0 would leave nothing."
        )
    return sparsity


def one_share(targets: Mapping[str, float | None]) -> tuple[str, float] | None:
    """The one target that was given, of some shares that may be left by name; None if none was.

    Raises:
        ValueError: more than one was given, or a share is not in (0, 1).
    """
    given = [(name, share) for name, share in targets.items() if share is not None]
    if len(given) > 1:
        raise ValueError(f"{', '.join(f'target_{name}={share}' for name, share in given)}: give one of them.")
    for name, share in given:
        if not 0 < share < 1:
            raise ValueError(f"target_{name}={share} is the share that may be left, in (0, 1), such as 0.5.")
    return given[0] if given else None


def keep_count(numel: int, share: float) -> int:
    """Weights to keep for a kept share, rounded to the nearest weight, at least 1."""
    return max(1, round(numel * share))


def floors(numels: Sequence[int], min_keep: float) -> list[int]:
    """Fewest weights each layer must keep: ``min_keep`` of it, rounded up, at least 1."""
    return [max(1, math.ceil(min_keep * n)) for n in numels]


def check_feasible(names: Sequence[str], numels: Sequence[int], least: Sequence[int], keep: int) -> None:
    """Raise `BudgetError`, naming the layers that hold most, if the floors alone exceed ``keep`` weights."""
    if sum(least) <= keep:
        return
    worst = sorted(zip(least, names, numels, strict=True), reverse=True)[:5]
    listing = ", ".join(f"{name} ({floor} of {numel})" for floor, name, numel in worst)
    raise BudgetError(
        f"The target keeps {keep} of {sum(numels)} weights, but min_keep per layer alone keeps {sum(least)}. "
        f"The layers that hold it back most: {listing}. Lower min_keep, lower the target, or exclude layers."
    )


def exact_masks(scores: Sequence[Tensor], least: Sequence[int], keep: int) -> list[Tensor]:
    """Masks that keep exactly ``keep`` weights in all: the highest scores, each layer at least its floor.

    With scores ``w²/τ_l`` this is one common factor on all learned thresholds, chosen so that the budget is met to the
    weight; ties go to the lower index.

    Args:
        scores: one tensor a layer, any shapes, higher is kept first.
        least: fewest weights to keep of each layer.
        keep: weights to keep in all, between ``sum(least)`` and the total.

    Returns:
        One bool tensor a layer, shaped as its scores, True where kept; ``keep`` True values in all.
    """
    numels = [s.numel() for s in scores]
    total = sum(numels)
    if not sum(least) <= keep <= total:
        raise BudgetError(f"Cannot keep {keep} weights: between {sum(least)} (floors) and {total} (all) can be kept.")
    joined = torch.cat([s.detach().reshape(-1).float() for s in scores]).clamp_max(torch.finfo(torch.float32).max)
    if joined.isnan().any():
        bad = [i for i, s in enumerate(scores) if s.isnan().any()]
        raise BudgetError(f"Scores of layers {bad} hold NaN: the weights have diverged; lower the learning rate.")
    for part, n in zip(joined.split(numels), least, strict=True):
        part[torch.topk(part, n).indices] = math.inf
    # kthvalue finds the cut in linear time; a stable order among equals settles who stays.
    cut = torch.kthvalue(joined, total - keep + 1).values
    kept = joined > cut
    ties = (joined == cut).nonzero().squeeze(1)
    kept[ties[: keep - int(kept.sum())]] = True
    return [part.view_as(s) for part, s in zip(kept.split(numels), scores, strict=True)]


def at_least(masks: Sequence[Tensor], weights: Sequence[Tensor], least: Sequence[int]) -> list[Tensor]:
    """The masks, with the largest weights of a layer kept where its mask alone keeps fewer than its floor."""
    out = []
    for mask, w, n in zip(masks, weights, least, strict=True):
        if int(mask.sum()) < n:
            mask = torch.zeros_like(mask).reshape(-1)
            mask[torch.topk(w.abs().reshape(-1), n).indices] = True
        out.append(mask.view_as(w))
    return out


def largest_threshold(w: Tensor, least: int) -> Tensor:
    """The highest threshold on ``w²`` that still keeps ``least`` weights (``w² > τ``), a scalar ≥ 0.

    Just under the ``least``-th largest square, so that this weight itself stays.
    """
    w2 = w.detach().reshape(-1).float().square()
    return torch.kthvalue(w2, w2.numel() - least + 1).values * (1 - 1e-6)


def steer(log_price: Tensor, kept: Tensor, goal: float, gain: float) -> Tensor:
    """Integral part of the price controller: ``log λ += gain · log(kept/goal)``, bounded to a sane range (e^±12)."""
    return (log_price + gain * torch.log(kept.clamp_min(1e-9) / goal)).clamp(-12.0, 12.0)


def steered_price(log_price: Tensor, kept: Tensor, goal: float, damping: float) -> Tensor:
    """The price itself, with a proportional part: ``λ = exp(log λ + damping · log(kept/goal))``.

    Thresholds integrate the price, so an integral controller alone would swing around the path.
    """
    return torch.exp(log_price + damping * torch.log(kept.clamp_min(1e-9) / goal))


def scratch_budget(base_macs: float, pruned_macs: float, epochs: int, cap: float | None = None) -> int:
    """Epochs in which a pruned network takes as many operations as the base network in ``epochs``, rounded down.

    Scratch-B of Liu et al., arXiv 1810.05270: 160 epochs on CIFAR become ``160 · base / pruned``; on ImageNet at most
    twice 90 (``cap=2``).

    Args:
        base_macs: cost of one sample before pruning; any unit.
        pruned_macs: after it, in the same unit; at most ``base_macs``.
        epochs: of the base network's training.
        cap: largest multiple of ``epochs``, 1 or more; None: none.

    Raises:
        ValueError: an argument out of its range.
    """
    if not 0 < pruned_macs <= base_macs:
        raise ValueError(f"pruned_macs={pruned_macs:g} must be positive and at most base_macs={base_macs:g}.")
    if epochs < 1:
        raise ValueError(f"epochs={epochs} must be 1 or more.")
    if cap is not None and cap < 1:
        raise ValueError(f"cap={cap:g} must be 1 or more: the multiple of the epochs that is not exceeded.")
    ratio = base_macs / pruned_macs
    return int(epochs * (ratio if cap is None else min(ratio, cap)) * (1 + 1e-12))  # a ratio of 10/3 is not 3.33…2
