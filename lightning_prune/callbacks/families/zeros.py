"""Holding zeros: putting the final masks into the weights wherever they live, and keeping them there afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_prune.callbacks.trainer import averaged_copies, callbacks_of
from lightning_prune.errors import DivergenceError
from lightning_prune.functional.ltp import at_least_float32
from lightning_prune.functional.order.kth import WHOLE, Shards
from lightning_prune.masks import Gate, Target, prunable_weights
from lightning_prune.masks.ltp import zeros_step_
from lightning_prune.masks.shards import local
from lightning_prune.support.averages import Lookalike

_SPARSE = 0.2  # share of zeros from which on a network is one that was pruned


def _averages(trainer: Trainer, copies: Sequence[Lookalike]) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters of all averaged copies, by their names in the model."""
    wholes = [("", getattr(average, "module", average)) for average in averaged_copies(trainer)]
    for path, copy in (*wholes, *((c.path, c.module) for c in copies)):
        yield from copy.named_parameters(prefix=path)


@torch.no_grad()
def _fold_everywhere(
    trainer: Trainer,
    targets: Sequence[Target],
    gates: Mapping[str, Gate],
    masks: Sequence[Tensor],
    copies: Sequence[Lookalike],
    shards: Shards,
) -> None:
    """Put what gates make of kept weights into the weights, in place: what is left computes what the soft network did.

    Averaged copies are multiplied by what the weight is. Momentum stays: it gathered ``dL/dv`` in the weight that the
    network used, which the parameter now is. Weights that an optimizer keeps for itself are not found.

    Args:
        trainer: its averaging callbacks are searched.
        targets: layers.
        gates: by parameter name; layers without one, and those whose gate changes nothing that it keeps, stay.
        masks: bool, one a layer, True where kept.
        copies: averaged copies that no callback keeps.
        shards: how the layers lie over processes.
    """
    factors: dict[str, Tensor] = {}
    folding = [(t, mask) for t, mask in zip(targets, masks, strict=True) if t.name in gates and gates[t.name].folds]
    for (target, mask), least in zip(folding, _smallest(folding, shards), strict=True):
        w = local(target.param)
        folded = gates[target.name].fold(w, least)
        factors[target.name] = torch.where(mask & (w != 0), at_least_float32(folded) / at_least_float32(w), 1.0)
        w.copy_(folded)
    for name, param in _averages(trainer, copies):
        if name in factors:
            param.mul_(factors[name].to(param.device))


def _smallest(layers: Sequence[tuple[Target, Tensor]], shards: Shards) -> Tensor:
    """The smallest magnitude but 0 that the mask keeps of each whole layer, float32 [layers]; inf where none is."""
    own = []
    for target, mask in layers:
        x = at_least_float32(local(target.param)).abs().float()
        kept = torch.where(mask & (x > 0), x, torch.inf).flatten()
        own.append(torch.cat([kept, x.new_full((1,), torch.inf)]).amin())  # a shard may be empty
    return shards.of_each(torch.stack(own)).amin(0) if own else torch.empty(0)


@torch.no_grad()
def prune_everywhere(
    trainer: Trainer,
    targets: Sequence[Target],
    masks: Sequence[Tensor],
    copies: Sequence[Lookalike] = (),
    gates: Mapping[str, Gate] | None = None,
    shards: Shards = WHOLE,
) -> None:
    """Zero the pruned weights, in place, wherever they live: the model, optimizer state, averaged copies of the model.

    What gates make of the kept ones is put into them before. Momentum and averages of pruned weights would otherwise
    bring them back at the next step or swap.

    Args:
        trainer: its optimizers and averaging callbacks are searched.
        targets: layers.
        masks: bool, one a layer, True where kept.
        copies: averaged copies that no callback keeps.
        gates: soft masks that stood until now, by parameter name.
        shards: how the layers lie over processes.
    """
    _fold_everywhere(trainer, targets, gates or {}, masks, copies, shards)
    by_param: dict[Tensor, Tensor] = {}
    for target, mask in zip(targets, masks, strict=True):
        local(target.param).masked_fill_(~mask, 0)
        if target.param.grad is not None:
            local(target.param.grad).masked_fill_(~mask, 0)
        by_param[target.param] = mask
    for optimizer in trainer.optimizers:
        for param, state in optimizer.state.items():
            found = by_param.get(param)
            for value in state.values() if found is not None else ():
                part = local(value) if torch.is_tensor(value) else None
                if part is not None and found is not None and part.shape == found.shape:
                    part.masked_fill_(~found.to(part.device), 0)
    by_name = {t.name: m for t, m in zip(targets, masks, strict=True)}
    for name, param in _averages(trainer, copies):
        if name in by_name:
            param.masked_fill_(~by_name[name].to(param.device), 0)


def report_zeros(method: str, zeros: Sequence[int], numel: int, kept: int) -> None:
    """Say what a prune has come to; ``kept`` weights were to be, and those of them that are zero are a warning."""
    total = sum(zeros)
    if dead := total - (numel - kept):
        rank_zero_warn(
            f"{dead} kept weights are exactly zero (layers initialised to zero?) and count as pruned from here on: "
            "train them first, with a longer warmup."
        )
    left = numel / max(numel - total, 1)
    rank_zero_info(f"{method}: pruned {total:,} of {numel:,} weights ({total / numel:.2%}, {left:.2f}x).")


def check_zeros(targets: Sequence[Target], before: Sequence[int], now: Sequence[int]) -> None:
    """Raise if there are fewer zeros than there were, naming the layers: RuntimeError, or DivergenceError."""
    lost = [f"{t.name} ({b - a})" for t, b, a in zip(targets, before, now, strict=True) if a < b]
    if lost:
        if not all(bool(local(t.param).isfinite().all()) for t in targets):
            raise DivergenceError(
                "The training has diverged after the prune: weights are NaN or infinite, those that were zero too. "
                "Lower the learning rate, clip gradients, or look for the batch whose loss is NaN."
            )
        raise RuntimeError(
            f"Pruned weights came back in {', '.join(lost[:5])}: something other than the optimizers writes to them. "
            "Step them through Lightning's optimizers, or write to weights that are not zero alone."
        )


class _Zeros(NamedTuple):
    param: nn.Parameter
    zero: Tensor


class ZeroKeeper:
    """Keeps pruned weights at zero through the steps of optimizers: it zeroes their gradients before each.

    That is enough for most. Some move a weight whose gradient and momentum are zero (Muon, preconditioned and noisy
    ones); the first step with a learning rate tells, and from then on zeros are put back after each.
    """

    def __init__(self) -> None:
        self._zeros: dict[int, list[_Zeros]] = {}
        self._stepped: set[int] = set()
        self._moves: set[int] = set()  # optimizers that do

    @torch.no_grad()
    def before(self, optimizer: Optimizer, params: Sequence[nn.Parameter]) -> None:
        """Zero the gradients of those params that are ``w == 0``: a finetune checkpoint needs no mask beside it."""
        for param in params:
            if param.grad is not None:
                zeros_step_(local(param), local(param.grad))
        key = id(optimizer)
        self._zeros.pop(key, None)
        if key not in self._stepped or key in self._moves:
            self._zeros[key] = [_Zeros(p, local(p) == 0) for p in params]

    @torch.no_grad()
    def after(self, optimizer: Optimizer) -> None:
        """Put zeros back, if this optimizer moves them. It may be called several times a step."""
        key = id(optimizer)
        for param, zero in self._zeros.get(key, ()):
            w = local(param)
            if key not in self._moves and bool(w[zero].any()):
                self._moves.add(key)
            w.masked_fill_(zero, 0)
        if any(float(group.get("lr", 1.0)) > 0 for group in optimizer.param_groups):
            self._stepped.add(key)


def warn_if_zeros_are_free(trainer: Trainer, network: nn.Module) -> None:
    """Warn if a sparse network is trained without a callback that holds its zeros: the first steps would fill them.

    Layers that are zero throughout do not count: they were initialised so.
    """
    if any(hasattr(callback, "zeros_at_prune") for callback in callbacks_of(trainer)):
        return
    try:
        weights = [local(w) for _, w in prunable_weights(network)]
    except ValueError:  # no conv or linear weight
        return
    counts = [(w.numel(), int(torch.count_nonzero(w))) for w in weights]
    numel, zeros = (sum(n for n, kept in counts if kept), sum(n - kept for n, kept in counts if kept))
    if zeros > _SPARSE * numel:
        rank_zero_warn(
            f"{zeros / numel:.0%} of the weights of {type(network).__name__} are zero, and training will fill them: "
            "add KeepZeros() to the Trainer's callbacks. If channels are to be removed as well, do that first: a "
            "sparse network tells little of which channels matter."
        )
