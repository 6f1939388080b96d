"""What gates learn belongs to the callback: one place unscales, all-reduces, steps and saves their parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from lightning_prune.callbacks.step import Step
from lightning_prune.callbacks.trainer import loss_scale
from lightning_prune.channels.select.taps import module_of
from lightning_prune.masks import Gate


class GateTrainer:
    """Trains the parameters of gates beside the user's optimizers, which never see them.

    Backward passes gather dL/dp in each parameter's ``.grad``, as accumulation and manual optimization have it. Once a
    step of the optimizer that holds the gated layer, the gradient of the gate's penalty is added and the gate moves.

    Args:
        gates: by the name of their site: a parameter, or a module, of whose input or output they are.
        network: holds the sites.
        optimizer: makes the optimizer of all gate parameters.
    """

    def __init__(
        self,
        gates: Mapping[str, Gate],
        network: nn.Module,
        optimizer: Callable[[list[Tensor]], torch.optim.Optimizer],
    ) -> None:
        tensors = dict(network.named_parameters(remove_duplicate=False))
        self._gates = {name: gate for name, gate in gates.items() if gate.parameters()}
        self._holders = {
            name: [tensors[name]] if name in tensors else list(network.get_submodule(module_of(name)).parameters())
            for name in self._gates
        }
        self.parameters = [p for gate in self._gates.values() for p in gate.parameters()]
        self._optimizer = optimizer(self.parameters) if self.parameters else None

    def step(self, trainer: Trainer, step: Step) -> None:
        """Move the gates whose layers are in this step's optimizer; the others keep what they have gathered."""
        if self._optimizer is None:
            return
        mine = [g for name, g in self._gates.items() if any(step.holds(p) for p in self._holders[name])]
        moving = [p for gate in mine for p in gate.parameters()]
        ours = {id(p) for p in moving}
        waiting = {p: p.grad for p in self.parameters if id(p) not in ours}
        scale = loss_scale(trainer)
        for p in waiting:
            p.grad = None
        for p in moving:
            if p.grad is not None:
                p.grad = p.grad / scale
        with torch.enable_grad():
            penalties = [cost for gate in mine if (cost := gate.penalty()) is not None]
            if penalties:
                torch.stack(penalties).sum().backward()
        for p in moving:  # with their penalties, which may depend on a rank's own batch
            if p.grad is not None:
                p.grad = trainer.strategy.reduce(p.grad, reduce_op="mean")  # type: ignore[assignment]
        finite = [p.grad.isfinite().all() for p in moving if p.grad is not None]
        if not finite or bool(torch.stack(finite).all()):  # a loss-scale overflow skips the step
            self._optimizer.step()
        for p in moving:
            p.grad = None
        for p, grad in waiting.items():
            p.grad = grad

    def state(self) -> dict[str, Any]:
        """Parameters and the optimizer's state, plain; a copy."""
        if self._optimizer is None:
            return {}
        return copy.deepcopy(
            {"parameters": [p.detach() for p in self.parameters], "optimizer": self._optimizer.state_dict()}
        )

    @torch.no_grad()
    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state, in place."""
        if self._optimizer is not None and state:
            for p, saved in zip(self.parameters, state["parameters"], strict=True):
                p.copy_(saved)
            self._optimizer.load_state_dict(state["optimizer"])
