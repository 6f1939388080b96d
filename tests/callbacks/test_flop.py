"""FLOP and its plain alternative: what the gates compute, how the budget is reached, and what is refused."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from lightning_prune import (
    FLOPCallback,
    SVDCallback,
    TimmClassifier,
    factorize,
    load_pruned,
    plan_of,
    save_pruned,
)
from lightning_prune.channels.surgery.factored import FactoredLayer
from lightning_prune.errors import BudgetError
from lightning_prune.factors import FactorUnits
from lightning_prune.factors.gates import ComponentGate
from lightning_prune.functional import hard_concrete, low_rank
from tests.callbacks.methods import check_budget, equal, fit, keep_all
from tests.toy import Toy, loaders, network, trainer


def gate_on(weight: Tensor, layer: nn.Module, price: float = -0.7) -> ComponentGate:
    """A gate in float64 whose components are closed, half open and open."""
    vectors, values = low_rank.basis(weight.flatten(1))
    log_alpha = torch.linspace(4, -6, len(values), dtype=torch.float64)
    gate = ComponentGate(vectors.to(weight), log_alpha, layer, 0.1, torch.tensor(price).double())
    gate.noise.copy_(torch.rand(len(values), generator=torch.Generator().manual_seed(0)))
    return gate


@pytest.mark.parametrize("layer", [nn.Linear(7, 4), nn.Linear(4, 7), nn.Conv2d(2, 5, 3)])
def test_what_gates_compute(layer: nn.Module) -> None:
    layer = layer.double()
    w = layer.weight.detach()
    gate = gate_on(w, layer)
    u, s, v = torch.linalg.svd(w.flatten(1), full_matrices=False)
    z = hard_concrete.sample(gate.log_alpha.detach(), gate.noise)
    torch.testing.assert_close(gate(w).detach().flatten(1), (u * (s * z)) @ v)
    layer.eval()
    kept = hard_concrete.evaluation_gates(gate.log_alpha.detach())
    evaluated = gate(w).detach().flatten(1)
    torch.testing.assert_close(evaluated, (u * (s * kept)) @ v)
    first, second = low_rank.factors(evaluated, int((kept > 0).sum()))
    torch.testing.assert_close(second @ first, evaluated)  # so the removal is the network that was evaluated


def test_gradients_of_the_gate_against_finite_differences() -> None:
    layer = nn.Linear(5, 3).double()
    gate = gate_on(layer.weight.detach(), layer)
    assert torch.autograd.gradcheck(gate, layer.weight)

    def of_gates(log_alpha: Tensor) -> Tensor:
        gate.log_alpha = log_alpha
        return torch.cat([gate(layer.weight.detach()).flatten(), gate.penalty().view(1)])

    assert torch.autograd.gradcheck(of_gates, gate.log_alpha.detach().clone().requires_grad_())


def test_gates_are_of_full_precision_under_autocast_and_in_half() -> None:
    layer = nn.Linear(16, 16)
    gate = gate_on(layer.weight.detach(), layer)
    wanted = gate(layer.weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = gate(layer.weight)
    assert found.dtype == torch.float32
    assert torch.equal(found, wanted)
    half = layer.weight.detach().bfloat16()
    assert torch.equal(gate(half), gate(half.float()).bfloat16())


def test_the_multipliers_bring_the_expected_size_to_its_path(tmp_path: Path) -> None:
    gaps: list[float] = []

    class Track(FLOPCallback):
        def before_step(self, units: FactorUnits, step: Any) -> None:
            super().before_step(units, step)
            gaps.append(float(self._pruned()) - self._goal)
            goals.append(self._goal)

    goals: list[float] = []
    options = {"target_params": 0.4, "warmup": 1, "sparsify": 14}
    _, callback, _ = fit(tmp_path, Track, options=options, max_epochs=16, limit_val_batches=0)
    dense = sum(p.numel() for p in network().parameters())
    prunable = callback.units.numel
    assert goals == sorted(goals)
    assert goals[-1] == pytest.approx(1 - (0.4 * dense - (dense - prunable)) / prunable, abs=1e-2)
    assert goals[0] < 0  # two full factors are larger than one weight
    assert sum(map(abs, gaps[-10:])) / 10 < 0.1
    assert callback._multipliers[1] > 0


def test_a_price_that_does_not_move_leaves_the_budget_to_the_removal(tmp_path: Path) -> None:
    """At twenty times less the multipliers hardly act, and the budget is met all the same."""
    module, callback, _ = fit(tmp_path, FLOPCallback, options={"target_params": 0.5, "multiplier_lr": 1e-6})
    assert float(callback._pruned()) < 0.2
    check_budget("flop", module)


def test_svd_meets_the_budget_with_the_weights_of_the_removal(tmp_path: Path) -> None:
    module, _, _ = fit(tmp_path / "whole", SVDCallback, options={"target_params": 0.5}, callbacks=[keep_all(tmp_path)])
    check_budget("flop", module)
    for step in (24, 45):
        again, _, _ = fit(
            tmp_path / "again", SVDCallback, options={"target_params": 0.5}, ckpt_path=tmp_path / f"step={step}.ckpt"
        )
        assert equal(module, again)


def test_a_vit_by_the_names_of_its_layers(tmp_path: Path) -> None:
    sizes = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
    module = TimmClassifier("vit_tiny_patch16_224", num_classes=4, model_kwargs=sizes)
    include = ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]
    callback = FLOPCallback(target_params=0.6, include=include, warmup=0, sparsify=2, skip_last=True)
    trainer(tmp_path, [callback], max_epochs=3, limit_val_batches=0).fit(module, loaders()["train_dataloaders"])
    factored = {name for name, layer in module.model.named_modules() if isinstance(layer, FactoredLayer)}
    assert factored
    assert factored <= {f"blocks.0.{name}" for name in include}
    dense = sum(p.numel() for p in TimmClassifier("vit_tiny_patch16_224", 4, model_kwargs=sizes).model.parameters())
    left = sum(p.numel() for p in module.model.parameters())
    assert 0.6 * dense - 80 < left <= 0.6 * dense  # a component of the perceptron takes 16 + 64
    assert callback.numbers["params"] == left / dense
    loaded = load_pruned(save_pruned(module, tmp_path / "vit.safetensors"))
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(loaded.eval()(x), module.eval()(x))


def test_pointwise_convolutions_of_a_timm_model_by_name() -> None:
    model = timm.create_model("test_efficientnet", num_classes=4).eval()
    factorize(model, energy=0.3, include=["*conv_pw", "*conv_pwl"])
    factored = {name: layer for name, layer in model.named_modules() if isinstance(layer, FactoredLayer)}
    assert len(factored) > 2
    assert all(name.endswith(("conv_pw", "conv_pwl")) for name in factored)
    assert all(layer[0].kernel_size == (1, 1) for layer in factored.values())
    output = model(torch.zeros(1, 3, 32, 32))
    plan = plan_of(model)
    assert plan is not None
    torch.testing.assert_close(plan.undo(model)(torch.zeros(1, 3, 32, 32)), output, rtol=1e-3, atol=1e-4)


def test_what_does_not_train_stays_dense_and_is_named(tmp_path: Path) -> None:
    module = Toy()
    module.net[0].requires_grad_(False)
    with pytest.warns(UserWarning, match="FLOPCallback leaves dense 0.weight: does not train"):
        fit(tmp_path, FLOPCallback, module, options={"target_params": 0.5}, limit_val_batches=0)
    assert type(module.net[0]) is nn.Conv2d
    assert isinstance(module.net[3], FactoredLayer)


def test_a_target_near_one_takes_something_all_the_same(tmp_path: Path) -> None:
    module, callback, _ = fit(tmp_path, FLOPCallback, options={"target_params": 0.9999, "include": ["8"]}, max_epochs=4)
    assert module.net[8].rank == 3
    assert callback.numbers == {"params": 1360 / 1364}


def test_wrong_values_are_named(tmp_path: Path) -> None:
    for options, message in (
        ({"drop": 1.0}, r"drop=1.0 is a probability"),
        ({"prior": -1}, r"prior=-1 must not be negative"),
        ({"gate_lr": 0}, r"gate_lr=0 must be positive, or None"),
        ({"multiplier_lr": -1}, r"multiplier_lr=-1 must be positive, or None"),
        ({"min_keep": 1}, r"min_keep=1 is a share of each layer's components"),
        ({"target_params": 1.5}, r"target_params=1.5 is the share that may be left"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            FLOPCallback(**options)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"no option 'target_param'. Did you mean target_params"):
        FLOPCallback(target_param=0.5)  # type: ignore[call-arg]
    module = Toy()
    for options, error, message in (
        ({"target_params": 0.05}, BudgetError, "fewest components alone take"),
        ({"exclude": ["*"]}, ValueError, "Nothing to prune"),
        ({"include": ["head"]}, ValueError, "include pattern 'head' matches no"),
    ):
        before = copy.deepcopy(module.state_dict())
        with pytest.raises(error, match=message):
            fit(tmp_path, FLOPCallback, module, options=options)
        assert all(torch.equal(t, before[n]) for n, t in module.state_dict().items())  # before the first batch
