"""What a structured method states, and what is known about a run of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_prune.callbacks import recalibrate
from lightning_prune.callbacks.run import Run
from lightning_prune.channels.prune import Pruned
from lightning_prune.channels.select.scales import ScaleFactors
from lightning_prune.channels.select.selector import Choice, Chooser, Resource

# dense: nothing is pushed yet; soft: scale factors are pushed; compact: the channels are gone.
Stage = Literal["dense", "soft", "compact"]


class ChannelMethod(Run):
    """The part of a callback that a method fills in. `ChannelPruningCallback` decides when each of these is called."""

    budget: tuple[Resource, float] | None

    def reset(self) -> None:
        """Back to the state before any fit."""
        super().reset()
        self.stage: Stage = "dense"
        self.chooser: Chooser | None = None
        self.choice: Choice | None = None
        self.pruned: Pruned | None = None
        self.numbers: dict[str, float] = {"macs": 1.0, "params": 1.0, "channels": 0.0}

    def start(self, factors: ScaleFactors) -> None:
        """Set the method's tensors for these scale factors; called when the phase begins and before a resume."""
        raise NotImplementedError

    def push(self, factors: ScaleFactors, lr: Tensor) -> None:
        """Move the scale factors, once after each optimizer step.

        Args:
            factors: to read and write.
            lr: the learning rate of each factor in this step, [factors]; 0 for those that the optimizer does not hold.
        """
        raise NotImplementedError

    def chosen(self, factors: ScaleFactors, choice: Choice) -> None:
        """Take note of a fresh choice of channels."""
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        """The method's state: tensors that are saved, and restored in place."""
        raise NotImplementedError

    def sizes(self, factors: ScaleFactors) -> Tensor:
        """What the rule orders the classes by, ≥ 0, [classes]: the size of their scale factors."""
        return factors.sizes(factors.read())

    def measure(self, trainer: Trainer, pl_module: LightningModule, factors: ScaleFactors) -> None:
        """Measure what the method needs from data; called before each choice."""

    def calibration_forward(self, module: LightningModule, batch: Any) -> tuple[Any, Tensor | None]:
        """How to run the network on a training batch: (output, labels or None). Override for unusual batches."""
        return recalibrate.forward_first_element(module, batch)


def budget_of(targets: Mapping[str, float | None], delta: float | None) -> tuple[Resource, float] | None:
    """The one target that was given, half the MACs if none was, or None where ``delta`` decides.

    A latency target begins as that share of the MACs.

    Raises:
        ValueError: more than one was given, or a share is not in (0, 1).
    """
    given: list[tuple[Any, float]] = [(name, share) for name, share in targets.items() if share is not None]
    if len(given) + (delta is not None) > 1:
        said = ", ".join(f"target_{name}={share}" for name, share in given)
        raise ValueError(f"{said}{f', delta={delta}' if delta is not None else ''}: give one of them.")
    for name, share in given:
        if not 0 < share < 1:
            raise ValueError(f"target_{name}={share} is the share that may be left, in (0, 1), such as 0.5.")
    if not given:
        return ("macs", 0.5) if delta is None else None
    name, share = given[0]
    return ("macs" if name == "latency" else name), share
