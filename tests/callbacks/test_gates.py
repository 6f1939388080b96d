"""What gates learn: gradients unscaled and summed once a step, whatever the user's loop does around them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from tests.callbacks.toys import Sigmoid, WeightGates
from tests.toy import Toy, loaders, trainer

STEPS = 6  # optimizer steps in the sparsify phase


class Still(Toy):
    """Weights that do not move, so that gates move by their gradient alone."""

    def __init__(self, manual: int = 0) -> None:
        super().__init__()
        self.manual, self.automatic_optimization = manual, not manual

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        if self.manual:
            optimizer = self.optimizers()
            assert not isinstance(optimizer, list)
            self.manual_backward(loss / self.manual)
            if (batch_idx + 1) % self.manual == 0:
                optimizer.step()
                optimizer.zero_grad()
            return None
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Plain(WeightGates):
    """Gates that move by their gradient."""

    def gate_optimizer(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=1.0)


def reference(batches: list[Any], per_step: int) -> dict[str, Tensor]:
    """The same by autograd on the whole expression."""
    module = Still()
    names = [n for n, p in module.named_parameters() if p.ndim > 1]
    gates = {n: Sigmoid(module.get_parameter(n).shape[1], 1) for n in names}
    for start in range(0, len(batches), per_step):
        for x, y in batches[start : start + per_step]:
            masked = {n: gates[n](module.get_parameter(n).detach()) for n in names}
            (F.cross_entropy(functional_call(module, masked, (x,)), y) / per_step).backward()
        for gate in gates.values():
            gate.penalty().backward()
            assert gate.logits.grad is not None
            gate.logits.data -= gate.logits.grad
            gate.logits.grad = None
    return {n: gate.logits.detach() for n, gate in gates.items()}


CASES: dict[str, tuple[int, int, dict[str, Any]]] = {
    "plain": (0, 1, {}),
    "accumulated": (0, 2, {"accumulate_grad_batches": 2}),
    "clipped": (0, 1, {"gradient_clip_val": 1e-6}),
    "loss scaling": (0, 1, {"precision": "16"}),
    "manual": (1, 1, {}),
    "manual, accumulated by hand": (2, 2, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_gates_follow_their_exact_gradient(case: str, tmp_path: Path) -> None:
    manual, per_step, options = CASES[case]
    if options.pop("precision", None):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        options = options | {"plugins": [MixedPrecision("16-mixed", "cpu", scaler)]}
    count = STEPS * per_step
    batches: list[Any] = []

    class Note(lightning.Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            if len(batches) < count:
                batches.append([t.clone() for t in batch])

        def on_train_batch_end(self, *args: Any) -> None:
            if callback.stage == "soft" and callback.seen <= count:
                found.update({n: g.logits.detach().clone() for n, g in callback.sigmoids.items()})

    found: dict[str, Tensor] = {}
    # The phase outlasts what is compared; its last step is the removal's.
    callback = Plain(target_sparsity=0.5, sparsify=f"{(STEPS + 1) * max(manual, 1)} steps", recalibrate_batches=0)
    options = {"max_epochs": 3, "limit_val_batches": 0} | options
    run = trainer(tmp_path, [callback, Note()], **options)
    run.fit(Still(manual), loaders()["train_dataloaders"])
    wanted = reference(batches, per_step)
    close = {"rtol": 2e-2, "atol": 2e-3} if case == "loss scaling" else {"rtol": 1e-4, "atol": 1e-6}
    for name, logits in wanted.items():
        assert not torch.equal(logits, torch.full_like(logits, 2.0))
        torch.testing.assert_close(found[name], logits, **close)
