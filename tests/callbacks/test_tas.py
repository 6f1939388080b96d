"""TAS: whose gradient moves what, on which data, and what the most likely widths become."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_prune import ChannelUnits, TASCallback
from lightning_prune.callbacks.held_out import HeldOut
from lightning_prune.channels.graph.cost import ChannelCost
from lightning_prune.channels.graph.graph import ChannelGraph
from lightning_prune.masks import attach, detach
from tests.callbacks.methods import equal, fit, keep_all, macs
from tests.callbacks.test_branches import module as residual
from tests.toy import Toy, loaders, network, samples

SHORT: dict[str, Any] = {"max_epochs": 2, "limit_val_batches": 0}
PHASES: dict[str, Any] = {"warmup": 0, "sparsify": 1, "recalibrate_batches": 0}
OTHER = DataLoader(samples(32, seed=9), 8)


def prepared(**options: Any) -> tuple[TASCallback, nn.Sequential]:
    """A callback that has begun, and its network with the gates on, without a Trainer."""
    callback, net = TASCallback(**options), network().eval()
    units = ChannelUnits.of(net, ChannelGraph.trace(net, torch.zeros(2, 1, 8, 8)))
    callback.root, callback.units = net, units
    callback.start(units)
    attach(net, callback.gates(units))
    return callback, net


def test_expected_macs_are_the_mean_over_all_widths() -> None:
    callback, net = prepared(widths=(0.25, 0.5, 1.0), target_macs=0.7)
    detach(net)
    with torch.no_grad():
        callback.widths.logits.copy_(torch.tensor([[0.3, -0.2, 0.9], [1.0, 0.1, -0.5]]))
    p, cost = callback.widths.logits.detach().softmax(1), ChannelCost.of(callback.units.graph)
    wanted = 0.0
    for (i, first), (j, second) in itertools.product(enumerate((2, 4, 8)), enumerate((4, 8, 16))):
        keep = torch.cat([torch.arange(8) < first, torch.arange(16) < second])
        wanted += float(p[0, i] * p[1, j]) * cost.macs(keep) / cost.macs()
    loss = callback.macs_loss()
    assert float(callback.expected) == pytest.approx(wanted, rel=1e-5)
    best = torch.cat([torch.arange(8) < 8, torch.arange(16) < 4])  # the most likely: all, and a quarter
    share = cost.macs(best) / cost.macs()
    assert share < 0.65  # under the target by more than the tolerance
    assert float(loss) == pytest.approx(-float(torch.tensor(wanted).log()), rel=1e-5)
    loss.backward()
    assert float(callback.widths.logits.grad.abs().sum()) > 0


def test_the_most_likely_widths_are_what_evaluation_sees_and_the_score_keeps() -> None:
    callback, net = prepared(widths=(0.25, 0.5, 1.0))
    with torch.no_grad():
        callback.widths.logits[0, 1], callback.widths.logits[1, 0] = 1.0, 1.0
    x = samples(4).tensors[0]
    found = net(x)
    detach(net)
    first = net[:3](x)
    first[:, 4:] = 0
    last = net[3:8](first)
    last[:, 4:] = 0
    torch.testing.assert_close(found, net[8](last))
    score = callback.score(callback.units)
    assert ((score > 0) == torch.cat([torch.arange(8) < 4, torch.arange(16) < 4])).all()
    torch.testing.assert_close(score[:8] * 8, 4.0 - torch.arange(8.0, dtype=torch.float64))


class Frozen(Toy):
    """Weights that do not move."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


class First(lightning.Callback):
    """Gradients and draws of the first step."""

    def __init__(self) -> None:
        self.logits = self.drawn = None
        self.weights: dict[str, torch.Tensor] = {}

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        callback = trainer.callbacks[0]
        if callback.stage == "soft" and self.logits is None:
            self.logits = callback.widths.logits.grad.clone()
            self.drawn = callback.widths.drawn
            self.weights = {n: p.grad.clone() for n, p in pl_module.net.named_parameters()}


def test_widths_learn_on_held_out_data_and_weights_on_the_fits(tmp_path: Path) -> None:
    first = First()
    options = PHASES | {"held_out": OTHER, "target_macs": 0.5}
    fit(tmp_path, TASCallback, Frozen(), callbacks=[first], options=options, **SHORT)
    callback, net = prepared(target_macs=0.5)
    net.train()
    callback.noise.restart(0)
    callback.widths.draw(callback.noise, 5.0, learn=True)
    x, y = next(iter(OTHER))
    total = F.cross_entropy(net(x), y) + 2.0 * callback.macs_loss()
    (wanted,) = torch.autograd.grad(total, callback.widths.logits)
    torch.testing.assert_close(first.logits, wanted, rtol=1e-4, atol=1e-7)
    callback.widths.draw(callback.noise, 5.0, learn=False)
    assert callback.widths.drawn[0] == first.drawn[0]
    x, y = next(iter(loaders()["train_dataloaders"]))
    F.cross_entropy(net(x), y).backward()
    for name, p in net.named_parameters():
        torch.testing.assert_close(first.weights[name], p.grad, rtol=1e-4, atol=1e-6)
    assert callback.widths.logits.grad is None  # weights' batches do not move the widths


def test_validation_data_is_held_out_and_without_any_that_is_said(tmp_path: Path) -> None:
    _, callback, _ = fit(tmp_path, TASCallback, options=PHASES, max_epochs=2)
    assert callback._stream.loader.dataset.tensors[0].shape[0] == 32
    with (
        pytest.warns(UserWarning, match="has no held-out data, so widths learn on the batches that weights train on"),
        pytest.warns(UserWarning, match="no residual branches of Sequential that can be taken out"),
    ):
        fit(tmp_path, TASCallback, options=PHASES, **SHORT)


class Here:
    """What `HeldOut` asks of a Trainer."""

    def __getattr__(self, name: str) -> Any:
        return lambda batch, dataloader_idx=0: batch

    @property
    def precision_plugin(self) -> Any:
        return type("Plugin", (), {"convert_input": staticmethod(lambda batch: batch)})

    @property
    def lightning_module(self) -> Any:
        return type("Module", (), {"_on_before_batch_transfer": staticmethod(lambda batch, dataloader_idx: batch)})

    @property
    def strategy(self) -> Any:
        return type("Strategy", (), {"batch_to_device": staticmethod(lambda batch, dataloader_idx: batch)})


@pytest.mark.parametrize("sized", [True, False])
def test_the_kth_held_out_batch_is_a_function_of_k(sized: bool) -> None:
    data = DataLoader(TensorDataset(torch.arange(10)), 4, shuffle=True)
    loader: Any = data if sized else type("Stream", (), {"__iter__": lambda self: iter(data)})()
    torch.manual_seed(7)
    before = torch.get_rng_state()
    trainer: Any = Here()
    stream = HeldOut(loader)
    seen = [stream.batch(trainer, k)[0].tolist() for k in range(9)]
    assert [sorted(itertools.chain(*seen[i : i + 3])) for i in (0, 3, 6)] == [list(range(10))] * 3
    assert seen[:3] != seen[3:6]
    for k in (7, 2, 8):
        assert HeldOut(loader).batch(trainer, k)[0].tolist() == seen[k]
        assert stream.batch(trainer, k)[0].tolist() == seen[k]  # back and forth
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(ValueError, match="held_out has no batch"):
        HeldOut([]).batch(trainer, 0)
    with pytest.raises(ValueError, match="no batch left, and cannot be read twice"):
        HeldOut(iter([torch.zeros(2), torch.zeros(1)])).batch(trainer, 1)


def test_layers_whose_channels_cannot_be_mixed_are_named(tmp_path: Path) -> None:
    class Halves(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, ::2] + x[:, 1::2]

    class Paired(Toy):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(
                *network()[:3], Halves(), nn.Conv2d(4, 8, 3), nn.ReLU(), *network()[6:8], nn.Linear(8, 4)
            )

    with pytest.warns(UserWarning, match=r"TASCallback cannot mix widths of|TASCallback leaves whole"):
        fit(tmp_path, TASCallback, Paired(), options=PHASES | {"target_macs": 0.7, "held_out": OTHER}, **SHORT)


def test_what_is_out_of_range_is_named() -> None:
    for widths in ((1.0,), (0.5, 0.4, 1.0), (0.5, 0.9), (0.0, 1.0)):
        with pytest.raises(ValueError, match=r"widths=\(.* increasing, the last of them 1"):
            TASCallback(widths=widths)
    with pytest.raises(ValueError, match=r"depths=\(0.5,\): .* the last of them 1, or \(\) for none"):
        TASCallback(depths=(0.5,))
    with pytest.raises(ValueError, match=r"width_lr=-1 and temperature=\(5.0, 0.1\) must be positive"):
        TASCallback(width_lr=-1)


class Shallow(TASCallback):
    """Is nearly sure of one block of two from the beginning."""

    def start(self, units: ChannelUnits) -> None:
        super().start(units)
        assert self.depths is not None
        with torch.no_grad():
            self.depths.counts.logits.copy_(torch.tensor([[3.0, 0.0]]))


def blocks(**options: Any) -> dict[str, Any]:
    """A short fit of a network of two residual blocks."""
    given = {"depths": (0.5, 1.0), "sparsify": 2, "held_out": OTHER}
    return {"module": residual(), "max_epochs": 3, "limit_val_batches": 0, "options": PHASES | given | options}


class Removal(lightning.Callback):
    """The network before the removal and after it, and the names in its checkpoints before."""

    before: Any = None
    after: Any = None

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        if trainer.callbacks[0].stage == "soft":
            self.before, self.names = copy.deepcopy(pl_module.net), list(pl_module.state_dict())

    def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if trainer.callbacks[0].stage == "pruned" and self.after is None:
            self.after = copy.deepcopy(pl_module.net)


def test_the_branch_behind_the_most_likely_depth_goes_whole(tmp_path: Path) -> None:
    removal, path = Removal(), tmp_path / "kept"
    options: dict[str, Any] = {"target_macs": 0.515}  # what the first block leaves, within 1 %
    module, callback, _ = fit(tmp_path, Shallow, callbacks=[keep_all(path, 10), removal], **blocks(**options))
    assert callback.depths.counts.best() == [1]
    cut = {"blocks.1.0", "blocks.1.1", "blocks.1.3"}
    assert set(callback.pruned.plan.empty) == cut
    assert removal.names == list(residual().state_dict())  # checkpoints in mid-search are the dense network's
    masked, x = removal.before, samples(8).tensors[0]
    masked.blocks = masked.blocks[:1]
    torch.testing.assert_close(removal.after.train()(x), masked.train()(x))
    before, after = (dict(net.named_parameters()) for net in (removal.after, module.net))
    live = [name for name in before if not name.startswith("blocks.1")]
    assert all(bool((before[name] != after[name]).any()) for name in live)
    again, _, _ = fit(tmp_path / "again", Shallow, ckpt_path=path / "step=10.ckpt", **blocks(**options))
    assert equal(module, again)


def test_widths_and_depths_meet_the_budget_together(tmp_path: Path) -> None:
    start = blocks(target_macs=0.3)
    dense = macs(start["module"].net)
    module, callback, _ = fit(tmp_path, Shallow, **start)
    assert module.net.blocks[1][0].out_channels == 0
    assert module.net.blocks[0][0].out_channels < 12
    assert 0.27 < macs(module.net) / dense <= 0.3  # a channel of the first block is a twelfth of a half
    assert callback.numbers["macs"] == pytest.approx(macs(module.net) / dense, abs=1e-3)
