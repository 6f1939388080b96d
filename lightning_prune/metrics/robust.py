"""Accuracy under attack and vulnerability of features, as ANP-VS measures them (Madaan et al., arXiv 1908.04355)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd
from torchmetrics import Metric

from lightning_prune.functional.attacks import PGD
from lightning_prune.support.modes import mode
from lightning_prune.support.watch import watching


def layer_inputs(network: nn.Module, layers: Collection[str], run: Callable[[], Any]) -> tuple[dict[str, Tensor], Any]:
    """What enters some layers at their first call while ``run()`` runs, by path, and what that returns.

    Paths that the network does not have are left out.
    """
    found: dict[str, Tensor] = {}
    modules = dict(network.named_modules())

    def note(path: str, x: Tensor) -> None:
        found.setdefault(path, x)

    with watching({path: (modules[path], "input") for path in layers if path in modules}, note):
        out = run()
    return found, out


def vulnerability(
    clean: Mapping[str, Tensor], adversarial: Mapping[str, Tensor], masks: Mapping[str, Callable[[Tensor], Tensor]]
) -> Tensor:
    """V, the mean over layers of the mean of ``|f(x) − f(x_adv)|``, a scalar; 0 without layers.

    Args:
        clean, adversarial: features of the same examples by layer.
        masks: what multiplies a layer's features, by layer; absent ones are 1.

    Raises:
        ValueError: the features are not of the same examples.
    """
    parts = []
    for name, x in clean.items():
        other = adversarial.get(name)
        if other is None or other.shape != x.shape:
            raise ValueError(
                f"vulnerability compares features of clean and adversarial examples, and {name} got "
                f"{tuple(x.shape)} and {None if other is None else tuple(other.shape)}. Both passes must call the "
                "network on as many inputs."
            )
        moved = other - x
        parts.append((masks[name](moved) if name in masks else moved).abs().mean())
    return torch.stack(parts).mean() if parts else torch.zeros(())


def _attacked(attack: PGD, network: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    with mode(network, False), torch.inference_mode(False):
        x, labels = x.clone(), labels.clone()  # inference tensors take no gradient
        return attack(lambda inputs: F.cross_entropy(network(inputs).float(), labels), x)


class RobustAccuracy(Metric):
    """Share of examples that a classifier gets right under attack, from 0 to 1.

    Args:
        attack: None measures clean accuracy.
        source: the network that the attack sees; None: the one that is measured (white box), another: black box.
        kwargs: of ``torchmetrics.Metric``.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    right: Tensor
    total: Tensor

    def __init__(self, attack: PGD | None = None, source: nn.Module | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.attack, self._source = attack, (source,)  # in a tuple, it is no part of the metric
        self.add_state("right", torch.tensor(0, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, network: nn.Module, x: Tensor, labels: Tensor) -> None:
        """Add a batch.

        Args:
            network: gives logits [N, classes]; is run in eval mode.
            x: inputs [N, ...].
            labels: classes [N].
        """
        if self.attack is not None:
            source = self._source[0]
            x = _attacked(self.attack, network if source is None else source, x, labels)
        with mode(network, False), torch.no_grad():
            self.right += (network(x).argmax(1) == labels).sum()
        self.total += len(labels)

    def compute(self) -> Tensor:
        """Right / all, a scalar; 0 before any update."""
        return self.right.double().div(self.total.clamp_min(1)).float()


class Vulnerability(Metric):
    """How far an attack moves what the layers of a network read: V of `vulnerability`, mean over batches.

    Args:
        attack: makes the adversarial examples, on the network itself.
        layers: paths of the layers whose inputs count; None: all convolutions and linear layers but those that read
            the examples themselves.
        kwargs: of ``torchmetrics.Metric``.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = False
    moved: Tensor
    total: Tensor

    def __init__(self, attack: PGD, layers: Collection[str] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.attack, self.layers = attack, layers
        self.add_state("moved", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, network: nn.Module, x: Tensor, labels: Tensor) -> None:
        """Add a batch, as in `RobustAccuracy.update`."""
        layers = self.layers
        if layers is None:
            layers = [path for path, m in network.named_modules() if isinstance(m, (_ConvNd, nn.Linear))]
        found = _attacked(self.attack, network, x, labels)
        with mode(network, False), torch.no_grad():
            clean, _ = layer_inputs(network, layers, lambda: network(x))
            adversarial, _ = layer_inputs(network, layers, lambda: network(found))
        if self.layers is None:
            clean = {name: seen for name, seen in clean.items() if seen is not x}
        self.moved += len(labels) * vulnerability(clean, adversarial, {})
        self.total += len(labels)

    def compute(self) -> Tensor:
        """Mean over examples, a scalar; 0 before any update."""
        return self.moved / self.total.clamp_min(1)
