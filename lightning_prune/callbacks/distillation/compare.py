"""What a teacher says to the calls of a network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_prune.callbacks.distillation.calls import Call, recording
from lightning_prune.functional.distillation import Matching, feature_loss, soft_target_loss
from lightning_prune.support.modes import mode
from lightning_prune.support.near import did_you_mean


@dataclass
class Comparison:
    """A network, its teacher, and what of theirs is compared.

    Attributes:
        student, teacher: networks.
        pairs: {path of a layer of the student: path of the teacher's}; `forget_layers` empties it.
        logits_of: the logits in an output.
        temperature, class_dim: see `soft_target_loss`.
        matching: see `feature_loss`.

    Raises:
        ValueError: there is no layer at a path; those that are near are named.
    """

    student: nn.Module
    teacher: nn.Module
    pairs: Mapping[str, str]
    logits_of: Callable[[Any], Tensor]
    temperature: float
    class_dim: int
    matching: Matching

    def __post_init__(self) -> None:
        self.layers = _layers(self.student, self.pairs)
        self._theirs = _layers(self.teacher, self.pairs.values())

    def forget_layers(self) -> None:
        """Compare logits alone from here on."""
        self.layers, self._theirs = {}, {}

    def losses(self, calls: Sequence[Call]) -> tuple[Tensor, Tensor | None]:
        """Mean over calls of the soft targets' loss, and of the features' summed over layers; None without layers.

        Raises:
            ValueError: there is no call with gradients, or outputs do not match.
        """
        found = [self._of(call) for call in calls if call.trains]
        if not found:
            raise ValueError(
                f"training_step did not call {type(self.student).__name__}, so there is nothing to compare with the "
                "teacher: call the network itself (not parts of it, nor its forward), or name it with network=."
            )
        features = [loss for _, loss in found if loss is not None]
        return torch.stack([soft for soft, _ in found]).mean(), torch.stack(features).mean() if features else None

    def _of(self, call: Call) -> tuple[Tensor, Tensor | None]:
        with torch.no_grad(), mode(self.teacher, False), recording(self.teacher, self._theirs) as taught:
            self.teacher(*call.args, **call.kwargs)
        theirs = taught[-1]
        mine, right = self.logits_of(call.output), self.logits_of(theirs.output)
        losses: list[Tensor] = []
        for path in self.layers:
            ours, others = call.features.get(path, []), theirs.features.get(self.pairs[path], [])
            if not ours or len(ours) != len(others):
                raise ValueError(
                    f"features: {path!r} gave {len(ours)} tensors and the teacher's {self.pairs[path]!r} {len(others)} "
                    "in one call, expected one or more of each: name layers that both networks call."
                )
            losses += [feature_loss(a, b, self.matching) for a, b in zip(ours, others, strict=True)]
        soft = soft_target_loss(mine, right, self.temperature, self.class_dim)
        return soft, torch.stack(losses).sum() if losses else None


def _layers(network: nn.Module, paths: Iterable[str]) -> dict[str, nn.Module]:
    modules = dict(network.named_modules())
    for path in paths:
        if path not in modules:
            hint = did_you_mean(path, modules) or f"It has {', '.join(list(modules)[1:6])}, ..."
            raise ValueError(f"features: {type(network).__name__} has no layer {path!r}. {hint}")
    return {path: modules[path] for path in paths}
