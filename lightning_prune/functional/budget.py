"""Meeting a budget of kept weights: exactly at the hard prune, and on the way to it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_prune.errors import BudgetError
from lightning_prune.functional.order.kth import WHOLE, Shards, first_ties, keys, kth_keys, values_of


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


def cost(counts: Sequence[int], prices: Sequence[float] = ()) -> float:
    """What that many weights of each layer cost, at the price of one in each; (): their number."""
    return sum(n * price for n, price in zip(counts, prices, strict=True)) if prices else sum(counts)


def floors(numels: Sequence[int], min_keep: float) -> list[int]:
    """Fewest weights each layer must keep: ``min_keep`` of it, rounded up, at least 1."""
    return [max(1, math.ceil(min_keep * n)) for n in numels]


def check_feasible(
    names: Sequence[str], numels: Sequence[int], least: Sequence[int], keep: float, prices: Sequence[float] = ()
) -> None:
    """Raise `BudgetError`, naming the layers that hold most, if the floors alone exceed ``keep`` weights, or MACs."""
    alone = cost(least, prices)
    if alone <= keep:
        return
    worst = sorted(zip(least, prices or [1.0] * len(least), names, numels, strict=True), key=lambda x: -x[0] * x[1])[:5]
    listing = ", ".join(f"{name} ({floor} of {numel})" for floor, _, name, numel in worst)
    unit = "MACs" if prices else "weights"
    raise BudgetError(
        f"The target keeps {keep:.10g} of {cost(numels, prices):.10g} {unit}, but min_keep per layer alone keeps "
        f"{alone:.10g}. The layers that hold it back most: {listing}. Lower min_keep, ask for less, or exclude layers."
    )


def exact_masks(
    scores: Sequence[Tensor],
    least: Sequence[int],
    keep: float,
    shards: Shards = WHOLE,
    total: float | None = None,
    prices: Sequence[float] = (),
) -> list[Tensor]:
    """Masks that keep exactly ``keep`` weights in all: the highest scores, each layer at least its floor.

    With prices, a kept weight counts what its layer's weights cost (their MACs, say): the highest scores are kept as
    long as they cost no more than ``keep``, which leaves less than the price of one weight unspent.

    With scores ``w²/τ_l`` this is one common factor on all learned thresholds, chosen so that the budget is met to the
    weight; ties go to the lower index.

    Args:
        scores: one tensor a layer, any shapes, higher is kept first; of layers in shards, this process's shards.
        least: fewest weights to keep of each whole layer.
        keep: weights to keep in all, or what they may cost; between what the floors take and the total.
        shards: how the layers lie over processes; the masks are those of the whole layers.
        total: weights in all, or what they cost; None: those of ``scores``, which are whole.
        prices: of a weight of each layer, > 0; (): 1 each.

    Returns:
        One bool tensor a layer, shaped as its scores, True where kept; without prices ``keep`` True values in all.
    """
    total = cost([s.numel() for s in scores], prices) if total is None else total
    floor_cost = cost(least, prices)
    if not floor_cost <= keep <= total:
        unit = "MACs" if prices else "weights"
        raise BudgetError(f"Cannot keep {keep} {unit}: between {floor_cost} (floors) and {total} (all) can be kept.")
    lost = shards.total(torch.stack([s.isnan().any() for s in scores]).long())
    if bool(lost.any()):
        bad = lost.nonzero().squeeze(1).tolist()
        raise BudgetError(f"Scores of layers {bad} hold NaN: the weights have diverged; lower the learning rate.")
    order = [keys(s) for s in scores]
    kept = _highest(order, [keep], shards, prices)
    counts = shards.total(torch.stack([torch.count_nonzero(k) for k in kept])).tolist()
    if all(count >= floor for count, floor in zip(counts, least, strict=True)):
        return kept  # what floors would keep is among the highest: they change nothing
    kept = _highest(order, least, shards)
    if keep == floor_cost:
        return kept
    for key, floor in zip(order, kept, strict=True):
        key.masked_fill_(floor, torch.iinfo(key.dtype).max)  # above an infinite score: floors are met first
    return _highest(order, [keep], shards, prices)


def _highest(
    order: Sequence[Tensor], ks: Sequence[float], shards: Shards, prices: Sequence[float] = ()
) -> list[Tensor]:
    """Where each tensor's k highest keys are, or those of all, or with prices what k buys; of equal ones the first."""
    cuts = kth_keys(order, ks, shards, prices).expand(len(order))
    above = [key > cut for key, cut in zip(order, cuts, strict=True)]
    ties = [key == cut for key, cut in zip(order, cuts, strict=True)]
    counts = torch.stack([torch.count_nonzero(a) for a in above])
    if prices:
        equal = shards.total(torch.stack([torch.count_nonzero(t) for t in ties]))
        wanted = torch.tensor(_affordable(ks[0], shards.total(counts).tolist(), equal.tolist(), prices))
    else:
        counts = shards.total(counts if len(ks) == len(order) else counts.sum(0, keepdim=True))
        wanted = torch.tensor(ks, device=counts.device) - counts
    return [a | t for a, t in zip(above, first_ties(ties, wanted.to(counts.device), shards), strict=True)]


def _affordable(budget: float, taken: Sequence[int], equal: Sequence[int], prices: Sequence[float]) -> list[int]:
    """How many of each layer's equal values fit in what the taken ones leave of a budget, layer after layer."""
    left, found = budget - cost(taken, prices), []
    for count, price in zip(equal, prices, strict=True):
        found.append(min(count, int(max(left, 0.0) / price * (1 + 1e-12))))
        left -= found[-1] * price
    return found


def at_least(
    masks: Sequence[Tensor], weights: Sequence[Tensor], least: Sequence[int], shards: Shards = WHOLE
) -> list[Tensor]:
    """The masks, with the largest weights of a layer kept where its mask alone keeps fewer than its floor."""
    counts = shards.total(torch.stack([torch.count_nonzero(m) for m in masks])).tolist()
    few = [i for i, (count, n) in enumerate(zip(counts, least, strict=True)) if count < n]
    out = list(masks)
    if few:
        largest = _highest([keys(weights[i].abs()) for i in few], [least[i] for i in few], shards)
        for i, mask in zip(few, largest, strict=True):
            out[i] = mask
    return out


def largest_thresholds(weights: Sequence[Tensor], least: Sequence[int], shards: Shards = WHOLE) -> Tensor:
    """The highest threshold on ``w²`` that still keeps ``least`` weights (``w² > τ``) of each layer, float32 [layers].

    Just under the ``least``-th largest square, so that this weight itself stays; ≥ 0.
    """
    return values_of(kth_keys([keys(w.float().square()) for w in weights], least, shards)) * (1 - 1e-6)


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
