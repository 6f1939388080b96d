"""ANP-VS: two exact gradients, what becomes of masks at the removal, the six baselines, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_prune import PGD, ANPVSCallback, RobustAccuracy
from lightning_prune.callbacks.methods.channels.anp_vs import BASELINES
from lightning_prune.channels.graph.graph import ChannelGraph
from lightning_prune.channels.select.taps import scale_readers_
from lightning_prune.channels.select.units import ChannelUnits
from lightning_prune.functional.beta_bernoulli import divergence
from tests.callbacks.methods import check_budget, fit
from tests.callbacks.situations.networks import Twice
from tests.toy import Toy, samples

SHORT: dict[str, Any] = {"max_epochs": 2, "limit_val_batches": 0}
PHASES: dict[str, Any] = {"warmup": 0, "sparsify": 1, "target_macs": 0.5, "recalibrate_batches": 0}
ATTACK: dict[str, Any] = {"attack_steps": 2, "eps": 0.1, "attack_step": 0.05}


class Frozen(Toy):
    """Weights that do not move."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Gradients(lightning.Callback):
    """The first step's batch, masks, adversarial examples and gradients."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        callback = trainer.callbacks[0]
        if callback.stage == "soft" and not self.found:
            masks = callback.masks
            self.found = {
                "drawn": masks.drawn.detach().clone(),
                "masks": [masks.a.grad.clone(), masks.b.grad.clone()],
                "weights": {n: p.grad.clone() for n, p in pl_module.net.named_parameters()},
                "batch": pl_module.batch,
                "attacked": pl_module.inputs[-1],
                "price": masks.price,
            }


class Spying(Frozen):
    """Remembers what the network was called on."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.inputs.append(x.detach())
        return super().forward(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.batch = batch
        return super().training_step(batch, batch_idx)


def masked(net: nn.Sequential, x: Tensor, z: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits under masks z [N, 24], and the masked features of both layers that read some."""
    first = net[:3](x) * z[:, :8, None, None]
    last = net[3:8](first) * z[:, 8:]
    return net[8](last), [first, last]


def test_weights_and_masks_get_their_own_losses(tmp_path: Path) -> None:
    """θ: (CE + 2·CE_adv)/3 + λV; masks: CE_adv. Both by autograd on the whole, written out."""
    lam, seen, module = 0.7, Gradients(), Spying()
    options = PHASES | ATTACK | {"suppress": lam, "alpha": 1e-2}
    _, callback, _ = fit(tmp_path, ANPVSCallback, module, callbacks=[seen], options=options, **SHORT)
    found, (x, y) = seen.found, seen.found["batch"]
    assert float((found["attacked"] - x).abs().max()) == pytest.approx(0.1, abs=1e-6)
    start = Frozen()
    start.net.train()
    z = found["drawn"].clone().requires_grad_()
    clean, features = masked(start.net, x, z.detach())
    logits, moved = masked(start.net, found["attacked"], z)
    adversarial = F.cross_entropy(logits, y)
    (mask_grad,) = torch.autograd.grad(adversarial, z, retain_graph=True)
    distance = torch.stack([(a - b).abs().mean() for a, b in zip(moved, features, strict=True)]).mean()
    ((F.cross_entropy(clean, y) + 2 * adversarial) / 3 + lam * distance).backward()
    for name, p in start.net.named_parameters():
        torch.testing.assert_close(found["weights"][name], p.grad, rtol=1e-4, atol=1e-6)
    callback._noise.restart(0)
    fresh = callback.masks.__class__(24, torch.device("cpu"), 1e-2, 0.1)
    drawn = fresh.draw(callback._noise, len(x))
    torch.testing.assert_close(drawn.detach(), found["drawn"])  # of the first step, from the first parameters
    drawn.backward(mask_grad)
    torch.testing.assert_close(found["masks"], [fresh.a.grad, fresh.b.grad], rtol=1e-4, atol=1e-7)
    assert found["price"] == pytest.approx(2.0 / 64)  # β over 8 batches of 8


def test_activation_checkpointing_changes_no_gradient(tmp_path: Path) -> None:
    """The masks of a step are the same when the backward pass runs the layers again."""
    found = []
    for again in (False, True):
        module, gradients = Spying(), Gradients()
        module.net = Twice(module.net) if again else module.net
        fit(tmp_path, ANPVSCallback, module, [gradients], options=PHASES | ATTACK, **SHORT)
        found.append([*gradients.found["weights"].values(), *gradients.found["masks"]])
    assert len(found[0]) == len(found[1]) == 12
    for plain, repeated in zip(*found, strict=True):
        torch.testing.assert_close(plain, repeated)


def test_the_price_moves_masks_by_the_divergence_alone(tmp_path: Path) -> None:
    """With one class there is nothing to learn, and every mask goes down."""
    data = TensorDataset(samples().tensors[0], torch.zeros(64, dtype=torch.int64))
    options = PHASES | ATTACK | {"beta": 64.0, "mask_lr": 0.05, "sparsify": "24 steps"}
    _, callback, _ = fit(
        tmp_path, ANPVSCallback, options=options, data={"train_dataloaders": DataLoader(data, 8)}, max_epochs=4,
        limit_val_batches=0,
    )  # fmt: skip
    a, b = (F.softplus(p.detach()) for p in (callback.masks.a, callback.masks.b))
    before = divergence(F.softplus(torch.tensor(2.0)), F.softplus(torch.tensor(0.5413)), 1e-4)
    assert bool((divergence(a, b, 1e-4) < before).all())


def test_expected_masks_go_into_the_weights_behind(tmp_path: Path) -> None:
    """The network that is left without gates computes what it computed with them, before any channel is cut."""
    found: dict[str, Tensor] = {}
    x = samples().tensors[0]

    class Compare(ANPVSCallback):
        def remove(self, trainer: Any, pl_module: Any, early: bool) -> bool:
            pl_module.eval()
            found["gated"] = pl_module(x)
            return super().remove(trainer, pl_module, early)

        def select(self, *args: Any, removal: bool = False, **kwargs: Any) -> Any:
            selection = super().select(*args, removal=removal, **kwargs)
            if "gated" in found:
                selection.keep.fill_(True)
            return selection

    options = PHASES | ATTACK
    module, callback, _ = fit(tmp_path, Compare, Frozen(), options=options, **SHORT)
    torch.testing.assert_close(module.eval()(x), found["gated"])
    assert 0 < float(callback.masks.expected().min()) < 0.9


def test_readers_of_every_kind_take_factors_over() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.Conv2d(4, 4, 3, padding=1, groups=4),
        nn.ConvTranspose2d(4, 6, 2, stride=2), nn.Flatten(), nn.Linear(6 * 16, 5), nn.Linear(5, 2),
    ).double()  # fmt: skip
    x = torch.randn(2, 1, 2, 2, dtype=torch.float64)
    units = ChannelUnits.of(net, ChannelGraph.trace(net, x))
    factors = torch.rand(units.size, dtype=torch.float64) + 0.5
    handles = []
    for tap in units.taps.values():
        assert tap.side == "input"
        shape = [1] * (1 if tap.dim == -1 else 3)
        shape[tap.dim] = -1
        factor = torch.where(tap.groups >= 0, factors[tap.groups.clamp_min(0)], 1.0).view(shape)
        handles.append(tap.module.register_forward_pre_hook(lambda _, args, f=factor: (args[0] * f,)))
    wanted = net(x)
    for handle in handles:
        handle.remove()
    assert scale_readers_(net, units.taps, factors) == []
    torch.testing.assert_close(net(x), wanted)


def test_a_shared_weight_takes_no_two_factors() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.Linear(3, 2))
    units = ChannelUnits.of(net, ChannelGraph.trace(net, torch.zeros(1, 2)))
    net[4].weight = net[2].weight
    before = net[2].weight.detach().clone()
    left = scale_readers_(net, units.taps, torch.arange(1.0, units.size + 1))
    assert left == ["input of 4"]
    torch.testing.assert_close(net[2].weight.detach(), before * torch.tensor([1.0, 2.0, 3.0]))


@pytest.mark.parametrize("name", [name for name in BASELINES if name != "ANP-VS"])
def test_the_baselines_are_pruned_alike(name: str, tmp_path: Path) -> None:
    options = PHASES | ATTACK | BASELINES[name]
    module, callback, _ = fit(tmp_path, ANPVSCallback, options=options, **SHORT)
    check_budget("anp-vs", module)
    assert (callback.masks is not None) == ("P" in name and name != "Standard")
    assert callback.trains_to_the_end == name.startswith(("AT", "ANP"))
    assert ("vulnerability" in callback.metrics()) == name.endswith("VS")
    assert ("adversarial_loss" in callback.metrics()) == name.startswith(("AT", "ANP"))


def test_adversarial_training_makes_robust(tmp_path: Path) -> None:
    """From the same start on the same batches: more of the images withstand the attack than after plain training."""
    x, y = samples(64, seed=3).tensors
    scores = {}
    for name in ("Standard", "ANP-VS"):
        options = {"target_macs": 0.5, "eps": 0.4, "attack_step": 0.2, "attack_steps": 3} | BASELINES[name]
        module, _, _ = fit(tmp_path, ANPVSCallback, options=options, max_epochs=8, limit_val_batches=0)
        metric = RobustAccuracy(PGD(0.4, 0.1, 10))
        metric.update(module, x, y)
        scores[name] = float(metric.compute())
    assert scores["ANP-VS"] > scores["Standard"]


def test_what_is_out_of_range_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"suppress=0.0001 with adversarial=False: .* Give suppress=0"):
        ANPVSCallback(adversarial=False)
    with pytest.raises(ValueError, match=r"alpha=0, .* must be positive"):
        ANPVSCallback(alpha=0)
    with pytest.raises(ValueError, match=r"eps=-1.0, step=0.007, steps=10: an attack needs positive"):
        ANPVSCallback(eps=-1.0)
    with pytest.raises(TypeError, match="Did you mean attack_step"):
        ANPVSCallback(atack_steps=3)  # type: ignore[call-arg]
    integers = TensorDataset(torch.zeros(16, 1, 8, 8, dtype=torch.int64), torch.zeros(16, dtype=torch.int64))

    class Whole(Toy):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.float())

    with pytest.raises(ValueError, match=r"an attack moves the first element of a batch, a floating-point tensor"):
        fit(
            tmp_path,
            ANPVSCallback,
            Whole(),
            data={"train_dataloaders": DataLoader(integers, 8)},
            options=PHASES,
            **SHORT,
        )
