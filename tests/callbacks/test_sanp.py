"""SANP: what a sample costs, what is never used, and what ships."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_prune import ChannelUnits, SANPCallback
from lightning_prune.channels.graph.cost import ChannelCost
from lightning_prune.channels.graph.expected import ExpectedMacs
from lightning_prune.channels.graph.graph import ChannelGraph
from lightning_prune.channels.select.writers import writers_of
from lightning_prune.errors import CalibrationError
from lightning_prune.masks import attach, detach
from lightning_prune.zoo.models import CifarResNet
from tests.callbacks.methods import fit, macs
from tests.toy import Toy, loaders, network, samples

SHORT: dict[str, Any] = {"max_epochs": 2, "limit_val_batches": 0}
PHASES: dict[str, Any] = {"warmup": 0, "sparsify": 1, "recalibrate_batches": 2}
CPU = torch.device("cpu")


def residual() -> tuple[nn.Module, ChannelUnits]:
    torch.manual_seed(0)
    net = CifarResNet(1, in_chans=1, width=4)
    return net, ChannelUnits.of(net, ChannelGraph.trace(net, torch.zeros(2, 1, 8, 8)))


def test_used_or_not_the_cost_is_that_of_the_channels() -> None:
    _, units = residual()
    cost = ChannelCost.of(units.graph)
    share = ExpectedMacs(cost, CPU)
    keep = torch.rand(5, units.size, generator=torch.Generator().manual_seed(0)) > 0.4
    found = share(keep.float())
    for row, one in zip(keep, found, strict=True):
        assert float(one) == pytest.approx(cost.macs(row) / cost.macs(), rel=1e-4)
    assert float(share(torch.ones(units.size))) == pytest.approx(1.0)
    leaf = torch.rand(units.size, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(share, (leaf,))


def test_what_a_layer_does_not_write_is_not_computed_though_others_write_there() -> None:
    _, units = residual()
    cost = ChannelCost.of(units.graph)
    by_layer = cost.macs_by_layer()
    conv = next(path for path in by_layer if path.endswith("layer1.0.conv2"))
    share = ExpectedMacs(cost, CPU, {conv: writers_of(units)[conv].groups})
    found = share(torch.ones(3, units.size), {conv: torch.tensor([1.0, 0.5, 0.0])})
    assert found.tolist() == pytest.approx([1 - off * by_layer[conv] / cost.macs() for off in (0.0, 0.5, 1.0)])


def test_layers_write_behind_their_norm() -> None:
    _, units = residual()
    places = {path: w.place for path, w in writers_of(units).items()}
    assert places["conv1"] == "bn1"
    assert places["layer2.0.conv1"] == "layer2.0.bn1"
    assert places["layer2.0.downsample.0"] == "layer2.0.downsample.1"
    bare = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 4), nn.Linear(4, 2))
    units = ChannelUnits.of(bare, ChannelGraph.trace(bare, torch.zeros(1, 2)))
    assert {path: w.place for path, w in writers_of(units).items()} == {"0": "0", "2": "2"}


NEVER = {"0": [1, 5], "3": [0, 7, 9]}


class Biased(SANPCallback):
    """Some channels are never on, the rest always."""

    def start(self, units: ChannelUnits) -> None:
        super().start(units)
        with torch.no_grad():
            for path, never in NEVER.items():
                offset = self.spms[path].weights[3]
                offset.fill_(5.0)
                offset[never] = -5.0


def prepared(callback: SANPCallback) -> nn.Sequential:
    """A network with the callback's gates on, without a Trainer."""
    net = network().eval()
    units = ChannelUnits.of(net, ChannelGraph.trace(net, torch.zeros(2, 1, 8, 8)))
    callback.root, callback.units = net, units
    callback.start(units)
    attach(net, callback.gates(units))
    return net


def test_the_macs_of_a_sample_are_those_of_the_network_that_is_on_for_it() -> None:
    callback = Biased()
    net = prepared(callback)
    net(samples(4).tensors[0])
    found = callback.sample_macs()
    detach(net)
    small = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 13, 3, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(13, 4),
    )  # fmt: skip
    assert found.tolist() == pytest.approx([macs(small) / macs(network())] * 4)
    found.sum().backward()
    assert all(
        spm.weights[3].grad is not None and bool((spm.weights[3].grad > 0).all()) for spm in callback.spms.values()
    )


def test_only_what_no_sample_uses_goes_without_a_target_and_the_dynamic_network_is_the_same(tmp_path: Path) -> None:
    x = samples().tensors[0]
    found: dict[str, Tensor] = {}

    stays = {"0": torch.tensor([i not in NEVER["0"] for i in range(8)])}
    stays["3"] = torch.tensor([i not in NEVER["3"] for i in range(16)])

    class Compare(Biased):
        def remove(self, trainer: Any, pl_module: Any, early: bool) -> bool:
            pl_module.eval()
            found["dynamic"] = pl_module(x)
            done = super().remove(trainer, pl_module, early)
            for path, inside in (("0", torch.ones(1, dtype=torch.bool)), ("3", stays["0"])):  # cut as their layers are
                spm = self.spms[path]
                first, bias, second, offset = spm.weights
                spm.weights[:] = [first[:, inside], bias, second[stays[path]], offset[stays[path]]]
                spm.free = spm.free[stays[path]]
            attach(self.root, self.gates(self.units))
            found["static"] = pl_module(x)
            detach(self.root)
            return done

    options = PHASES | {"price": 1e-6, "spm_lr": 1e-6, "recalibrate_batches": 0}
    module, callback, _ = fit(tmp_path, Compare, options=options, **SHORT)
    assert torch.equal(callback.pruned.keep, torch.cat([stays["0"], stays["3"]]))
    assert callback.pruned.proof.equal
    torch.testing.assert_close(found["static"], found["dynamic"])
    assert module.net[3].weight.shape[:2] == (13, 6)


def test_the_mean_cost_goes_to_the_budget(tmp_path: Path) -> None:
    ends = {}
    for budget in (0.3, 0.7):
        options = {"warmup": 1, "sparsify": 6, "budget": budget, "spm_lr": 0.02, "target_macs": 0.5, "price": 30.0}
        _, callback, _ = fit(tmp_path, SANPCallback, options=options, max_epochs=8, limit_val_batches=0)
        ends[budget] = float(callback.macs_per_sample)
    assert abs(ends[0.3] - 0.3) < 0.15
    assert abs(ends[0.7] - 0.7) < 0.15


def test_what_is_out_of_range_or_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"budget=1.5 is the mean share of MACs that a sample may need"):
        SANPCallback(budget=1.5)
    with pytest.raises(ValueError, match=r"reduction=0 .* must be positive"):
        SANPCallback(reduction=0)
    once = {"train_dataloaders": iter(DataLoader(samples(), 8))}
    with pytest.raises(CalibrationError, match=r"counts on calibration batches which channels are used, and got none"):
        fit(tmp_path, SANPCallback, data=once, options={"warmup": 0, "sparsify": "2 steps"}, max_epochs=-1, max_steps=4)
    with pytest.warns(UserWarning, match="removes no channel: .* Each is used by some calibration sample"):
        module, callback, _ = fit(tmp_path, SANPCallback, data=loaders(), options=PHASES | {"price": 1e-6}, **SHORT)
    assert [p.shape for p in module.parameters()] == [p.shape for p in Toy().parameters()]  # all are used: nothing goes
    assert callback.pruned is None
