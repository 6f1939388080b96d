"""The whole mechanism against plain autograd, in every way of training that changes when and how gradients arrive."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from lightning_prune import LTPCallback
from lightning_prune.masks import ltp as kernels
from lightning_prune.masks.ltp import BAND, TASK
from tests.ltp_equations import band
from tests.toy import Toy, loaders, trainer

LAM = 0.5


class Probe(LTPCallback):
    """LTP with thresholds in the middle of the weights, that keeps the first gradients it sees."""

    def __init__(self) -> None:
        super().__init__(
            lam=LAM,
            sparsify=1.0,
            temperature_start=0.5,
            temperature=0.5,
            recalibrate_batches=0,
            feedback=0.0,
        )
        self.seen_tau_grad = {}
        self.used = {}

    def start(self, targets: Any) -> None:
        super().start(targets)
        self._u.fill_(0.6)
        self._cool()
        self.slopes, self.shifts = self._slope.clone(), self._shift.clone()

    def learn(self, stats: torch.Tensor, active: torch.Tensor) -> None:
        for i in active.nonzero().flatten().tolist():
            name = self.units.targets[i].name
            if name not in self.seen_tau_grad:
                self.seen_tau_grad[name] = -(stats[i, TASK] + self.price * stats[i, BAND]).item()
                self.used[name] = (self.slopes[i], self.shifts[i])
        super().learn(stats, active)


class Capture(lightning.Callback):
    """Keeps the gradients with which each optimizer takes its first step, and the batches before it."""

    def __init__(self) -> None:
        self.grads, self.batches = {}, []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        names = {id(p): n for n, p in pl_module.named_parameters()}
        self.start = copy.deepcopy(pl_module.state_dict())

        def after(optimizer: Any, args: Any, kwargs: Any) -> None:
            for group in optimizer.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        self.grads.setdefault(names[id(p)], p.grad.detach().clone())

        for optimizer in trainer.optimizers:
            optimizer.register_step_post_hook(after)  # the closure runs inside the step


def reference(probe: Any, module: Any, start: Any, losses: Any, scale: float = 1.0) -> Any:
    """Gradients of weights (g·m) and thresholds, from autograd through ``v(w, τ)`` and the losses as functions of v."""
    weights = {n: start[n].clone() for n in probe.used}
    v, gates, shifts = {}, {}, {}
    for name, (slope, shift) in probe.used.items():
        w = weights[name]
        # In the weights' precision: float32 cannot tell |w² − τ| apart much better than 1e-6·T/τ on either side.
        shifts[name] = shift.to(w.dtype).clone().requires_grad_()
        gates[name] = torch.sigmoid(w * w * slope.to(w.dtype) + shifts[name])
        v[name] = w * gates[name]
    # The values that the network really used, so that half-precision rounding is the same on both sides.
    leaves = {n: kernels.soft_mask(weights[n], *probe.used[n])[0].requires_grad_() for n in v}
    others = {n: start[n].clone().requires_grad_() for n, _ in module.named_parameters() if n not in leaves}
    loss = losses(lambda *args: functional_call(module, {**start, **others, **leaves}, args))
    names = list(leaves)
    grads = torch.autograd.grad(loss * scale, [*leaves.values(), *others.values()])
    g = dict(zip([*names, *others], grads, strict=True))
    rest = {n: g[n] / scale for n in others}
    tau_grad, weight_grad, size = {}, {}, {}
    for name in names:
        g[name] = g[name] / scale
        total = (v[name] * g[name]).sum() + (LAM / probe.units.numel) * gates[name].sum()
        (grad,) = torch.autograd.grad(total, shifts[name])
        tau_grad[name] = -(grad * probe.used[name][0]).item()  # shift = −τ/T
        # The sum's terms partly cancel; float32 rounds each of them, so errors are relative to their size.
        s = band(weights[name], -probe.used[name][1] / probe.used[name][0], 1 / probe.used[name][0])
        size[name] = (s * ((g[name] * weights[name]).abs() + LAM / probe.units.numel)).sum().item()
        weight_grad[name] = g[name] * gates[name].detach()  # eq. 14
    return tau_grad, size, weight_grad, rest


def relative(a: Any, b: Any) -> Any:
    a, b = torch.as_tensor(a, dtype=torch.float64), torch.as_tensor(b, dtype=torch.float64)
    return ((a - b).norm() / b.norm()).item()


class Manual(Toy):
    """Manual optimization that accumulates two batches."""

    automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        optimizer = self.optimizers()
        self.manual_backward(F.cross_entropy(self(x), y) / 2)
        if batch_idx % 2:
            optimizer.step()
            optimizer.zero_grad()


class TwoOptimizers(Toy):
    """Two networks, two optimizers, each stepped on its own loss in every batch."""

    automatic_optimization = False

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))

    def training_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        one, two = self.optimizers()
        one.zero_grad()
        self.manual_backward(F.cross_entropy(self.net(x), y))
        one.step()
        two.zero_grad()
        self.manual_backward(F.cross_entropy(self.other(x), y))
        two.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(self.net.parameters(), 0.1), torch.optim.SGD(self.other.parameters(), 0.1)]


CASES = {
    "automatic": {},
    "accumulated": {"accumulate_grad_batches": 2},
    "clipped": {"gradient_clip_val": 0.05},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "fp16-mixed": {"plugins": [MixedPrecision("16-mixed", "cpu")]},
    "manual": {},
    "two optimizers": {},
}


@pytest.mark.parametrize("case", CASES)
def test_gradients_equal_autograd(case: str, tmp_path: Path) -> Any:
    module = {"manual": Manual, "two optimizers": TwoOptimizers}.get(case, Toy)().double()
    mixed = "mixed" in case
    options = {"precision": "64-true"} if not mixed else {}
    if mixed:
        module = module.float()
    probe, capture = Probe(), Capture()
    data = loaders()
    batches = list(data["train_dataloaders"])
    fit = trainer(tmp_path, [probe, capture], max_epochs=1, limit_val_batches=0, **(options | CASES[case]))
    fit.fit(module, data["train_dataloaders"])
    plain = copy.deepcopy(module).train()
    plain.trainer = None
    dtype = torch.bfloat16 if case.startswith("bf16") else torch.float16
    window = batches[:2] if case in ("accumulated", "manual") else batches[:1]
    assert fit.global_step > 0

    def losses(forward: Any) -> Any:
        total = 0.0
        for x, y in window:
            x = x if mixed else x.double()
            with torch.autocast("cpu", dtype, enabled=mixed):
                if case == "two optimizers":
                    total = total + F.cross_entropy(forward(x, "net"), y) + F.cross_entropy(forward(x, "other"), y)
                else:
                    total = total + F.cross_entropy(forward(x), y) / len(window)
        return total

    if case == "two optimizers":
        plain.forward = lambda x, part: getattr(plain, part)(x)
    scale = 65536.0 if case.startswith("fp16") else 1.0
    tau_grad, size, weight_grad, rest = reference(probe, plain, capture.start, losses, scale)
    if case == "clipped":  # the clip sees g·m, as the optimizer does
        norm = torch.stack([x.norm() for x in (*weight_grad.values(), *rest.values())]).norm()
        assert norm > 0.05
        weight_grad = {n: x * 0.05 / (norm + 1e-6) for n, x in weight_grad.items()}
    assert set(tau_grad) == set(probe.used)
    assert len(tau_grad) == (4 if case == "two optimizers" else 3)
    for name in tau_grad:
        assert abs(probe.seen_tau_grad[name] - tau_grad[name]) < 1e-6 * size[name], name
        assert relative(capture.grads[name], weight_grad[name]) < 1e-6, name


def test_overflow_moves_nothing(tmp_path: Path) -> None:
    """A loss scale that overflows fp16: the scaler skips the weights' step, and thresholds stay too."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60, growth_interval=1000)
    module, probe = Toy(), Probe()
    before = copy.deepcopy(module.state_dict())
    seen = []

    class Watch(lightning.Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            seen.append(probe._u.clone())

    plugin = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    fit = trainer(tmp_path, [probe, Watch()], max_steps=1, limit_train_batches=3, limit_val_batches=0, plugins=[plugin])
    fit.fit(module, loaders()["train_dataloaders"])
    assert scaler.get_scale() < 2.0**60
    assert torch.equal(seen[0], torch.full_like(seen[0], 0.6))
    weight = "net.0.weight"
    pruned = module.state_dict()[weight]
    assert torch.equal(pruned[pruned != 0], before[weight][pruned != 0])
