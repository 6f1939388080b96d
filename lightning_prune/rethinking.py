"""Rethinking the Value of Network Pruning (Liu et al., ICLR 2019, arXiv 1810.05270): are inherited weights worth it?

Of one pruned network, three trainings are compared: of the weights that it inherits, finetuned; of random ones over the
epochs of the dense training (Scratch-E); and over as many as cost what the dense training did (Scratch-B).
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn

from lightning_prune.functional.budget import scratch_budget
from lightning_prune.io import load_pruned
from lightning_prune.plan.plan import PruningPlan
from lightning_prune.plan.record import Compact
from lightning_prune.support.macs import count_macs
from lightning_prune.support.network import find_network, reachable

Arm = Literal["finetuned", "Scratch-E", "Scratch-B"]
ARMS: tuple[Arm, ...] = ("finetuned", "Scratch-E", "Scratch-B")


@dataclass(frozen=True)
class Training:
    """One training of the pruned network.

    Attributes:
        arm: which of the three.
        seed: of its random weights, if it has any, and its batches.
        epochs: their number.
        cost: of the training, as a multiple of the dense one's.
        value: of the metric after it.
    """

    arm: Arm
    seed: int
    epochs: int
    cost: float
    value: float


@dataclass(frozen=True)
class Rethinking:
    """The trainings of one pruned network or several; printed, a table.

    Attributes:
        trainings: in the order in which they ran.
        metric: name of the metric.
    """

    trainings: tuple[Training, ...]
    metric: str

    def __add__(self, other: Rethinking) -> Rethinking:
        return Rethinking(self.trainings + other.trainings, self.metric)

    def values(self, arm: Arm) -> dict[int, float]:
        """{seed: value} of an arm."""
        return {each.seed: each.value for each in self.trainings if each.arm == arm}

    def __str__(self) -> str:
        lines = [f"| training | epochs | cost | {self.metric} | by seed |", "|---|---|---|---|---|"]
        for arm in dict.fromkeys(each.arm for each in self.trainings):
            mine = [each for each in self.trainings if each.arm == arm]
            epochs, cost, value = (
                statistics.mean(getattr(t, name) for t in mine) for name in ("epochs", "cost", "value")
            )
            by_seed = ", ".join(f"{each.value:.4f}" for each in mine)
            lines.append(f"| {arm} | {epochs:g} | {cost:.2f} | {value:.4f} | {by_seed} |")
        return "\n".join(lines)


def rethink(
    result: nn.Module | PruningPlan | str | Path,
    make: Callable[[Arm], LightningModule],
    trainer: Callable[[int], Trainer],
    data: Callable[[int], LightningDataModule],
    example_input: Any,
    *,
    epochs: int,
    finetune: int,
    weights: Mapping[str, Tensor] | None = None,
    metric: str = "test/acc",
    seeds: Sequence[int] = (0,),
    arms: Sequence[Arm] = ARMS,
    cap: float | None = None,
    network: str | None = None,
) -> Rethinking:
    """Trains a pruned network anew and compares; give every arm what it needs, above all its own learning rate.

    Random weights are those that ``make`` draws for the dense network, cut to the pruned one's shapes.

    Args:
        result: a compact module (or one that holds it), a file of `save_pruned`, or a plan (a `.json` file too).
        make: the dense LightningModule with random weights, fresh, for an arm.
        trainer: a Trainer of that many epochs.
        data: the data module of a seed.
        example_input: of the network, for its cost.
        epochs: of the dense network's training.
        finetune: epochs of the inherited weights.
        weights: with a plan: state dict of the trained dense network, which the weights are inherited from.
        metric: what ``Trainer.test`` logs, or ``Trainer.validate`` if it begins with "val".
        seeds: all arms are trained once a seed, over the same batches.
        arms: which to train.
        cap: of Scratch-B, see `scratch_budget`; 2 for ImageNet.
        network: name of the child of the LightningModule that is pruned; None: the innermost that holds all parameters.

    Raises:
        ValueError: the result is not compact, or inherited weights are asked of a plan without ``weights``.
    """
    plan, inherited = _taken(result, make, network)
    if "finetuned" in arms and inherited is None and weights is None:
        raise ValueError(
            "a plan has no weights to inherit: give weights= (the state dict of the dense network that it was made "
            "from), or arms=('Scratch-E', 'Scratch-B')."
        )
    dense = find_network(make(arms[0]), network)
    base = count_macs(dense, example_input)
    share = count_macs(plan.apply(dense), example_input) / base
    length = {"finetuned": finetune, "Scratch-E": epochs, "Scratch-B": scratch_budget(1.0, share, epochs, cap)}
    found = []
    for seed in seeds:
        for arm in arms:
            lightning.seed_everything(seed, verbose=False)
            module = make(arm)
            pruned = find_network(module, network)
            if arm == "finetuned" and inherited is None:
                pruned.load_state_dict(dict(weights or {}))
            plan.apply(pruned)
            if arm == "finetuned" and inherited is not None:
                pruned.load_state_dict(inherited)
            value = _trained(module, trainer(length[arm]), data(seed), metric)
            found.append(Training(arm, seed, length[arm], length[arm] * share / epochs, value))
    return Rethinking(tuple(found), metric)


def _trained(module: LightningModule, trainer: Trainer, data: LightningDataModule, metric: str) -> float:
    trainer.fit(module, datamodule=data)
    measure = trainer.validate if metric.startswith("val") else trainer.test
    numbers = measure(module, datamodule=data, verbose=False)[0]
    if metric not in numbers:
        raise ValueError(f"metric={metric!r} is not logged; there are {', '.join(numbers)}.")
    return float(numbers[metric])


def _taken(
    result: nn.Module | PruningPlan | str | Path, make: Callable[[Arm], LightningModule], network: str | None
) -> tuple[PruningPlan, dict[str, Tensor] | None]:
    """The plan of a result, and the weights that it holds, if any."""
    if isinstance(result, (str, Path)):
        if Path(result).suffix == ".json":
            return PruningPlan.from_json(Path(result)), None
        result = load_pruned(result, find_network(make(ARMS[0]), network))
    if isinstance(result, PruningPlan):
        return result, None
    for _, part in reachable(result):
        if (record := Compact.on(part)) is not None:
            return record.plan, copy.deepcopy(part.state_dict())
    raise ValueError(
        f"{type(result).__name__} is not compact: expected a network whose channels were removed, its file or its "
        "plan. Zeros alone leave the shapes, and what they cost, as they are."
    )
