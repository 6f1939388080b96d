"""What a candidate is worth: a fast measure of the network with its channels masked, right after the removal."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_prune.channels.select.requests import from_importance
from lightning_prune.channels.select.selection import Resource, Selection
from lightning_prune.channels.select.selector import Selector
from lightning_prune.channels.select.units import ChannelUnits
from lightning_prune.scoring.collect import run_network
from lightning_prune.search.shifted import shifted
from lightning_prune.support.batchnorm import recalibrate
from lightning_prune.support.modes import mode
from lightning_prune.support.watch import watching

Evaluate = Callable[[nn.Module], float]


def accuracy_on(batches: Iterable[Any]) -> Evaluate:
    """Makes a measure: the share of right top-1 answers on batches of (input, labels [N]), logits being [N, C].

    Raises:
        ValueError: there is no batch.
    """
    held = list(batches)
    if not held:
        raise ValueError("accuracy_on got no batch: give some of data that the weights were not trained on.")

    def evaluate(network: nn.Module) -> float:
        right = total = 0
        for batch in held:
            logits, labels = run_network(network)(batch)
            if labels is None:
                raise ValueError("accuracy_on needs batches of (input, labels); found an input alone.")
            right += int((logits.argmax(1) == labels).sum())
            total += len(labels)
        return right / total

    return evaluate


class Proxy:
    """Judges shifts of layers on one network, every candidate at the same budget. The network is left as it was.

    Args:
        units: the network's channel groups.
        quantile: of each in its layer by the base score, float64 [groups], +inf where it stays.
        selector: what meets the budget.
        target: (resource, share that may be left).
        evaluate: the network, its channels masked, in eval mode → its worth; the higher, the better.
        recalibrate_on: inputs on which BatchNorm statistics are estimated anew for each candidate; none: they stay.
    """

    def __init__(
        self, units: ChannelUnits, quantile: Tensor, selector: Selector, target: tuple[Resource, float],
        evaluate: Evaluate, recalibrate_on: Sequence[Any] = (),
    ) -> None:  # fmt: skip
        self.units, self.quantile, self.selector, self.target = units, quantile, selector, target
        self.evaluate = evaluate
        norms = [m for m in units.network.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
        self.norms = norms if recalibrate_on else []
        self.recalibrate_on = recalibrate_on if norms else ()

    def select(self, shifts: Tensor) -> Selection:
        """Which groups stay with these shifts, [layers].

        Raises:
            TargetError: the budget cannot be met.
        """
        units = self.units
        score = shifted(self.quantile, units.layer, shifts)
        return self.selector.meet(
            from_importance(score, units.members(), units.proven_zero(), target=self.target)
        )  # as `prune_channels` does

    @torch.no_grad()
    def value(self, keep: Tensor) -> float:
        """What the network is worth with some groups kept, bool [groups].

        Raises:
            ValueError: ``evaluate`` gave no finite number.
        """
        network, taps = self.units.network, self.units.taps
        masks = {name: (tap.groups < 0) | keep[tap.groups.clamp_min(0)] for name, tap in taps.items()}

        def mask(name: str, x: Tensor) -> Tensor:
            shape = [1] * x.ndim
            shape[taps[name].dim] = -1
            return x * masks[name].to(x).view(shape)

        before = [{name: buffer.clone() for name, buffer in norm.named_buffers()} for norm in self.norms]
        places = {name: (tap.module, tap.side) for name, tap in taps.items()}
        try:
            with watching(places, mask), mode(network, False), torch.compiler.set_stance("force_eager"):
                if self.norms:
                    recalibrate(network, self.recalibrate_on)
                value = float(self.evaluate(network))
        finally:
            for norm, buffers in zip(self.norms, before, strict=True):
                norm.load_state_dict(buffers, strict=False)
        if not math.isfinite(value):
            raise ValueError(f"evaluate gave {value}; expected a finite number, the higher the better.")
        return value
