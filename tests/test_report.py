"""Reports and metrics count the zeros that the network uses, each weight once."""

import copy
import doctest

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

import lightning_prune.metrics.sparsity
from lightning_prune import CompressionRatio, Sparsity, prune_channels, sparsity_report
from lightning_prune.masks import HardGate, attach, detach, find_targets
from tests.toy import network

SIZES = {"0.weight": 72, "3.weight": 1152, "8.weight": 64}


def sparse_network():
    net = network()
    with torch.no_grad():
        net[3].weight.view(-1)[:576] = 0
        net[1].weight.zero_()  # BatchNorm and biases never count
        net[8].bias.zero_()
    return net


def test_counts_per_layer_and_in_all():
    report = sparsity_report(sparse_network())
    assert {x.name: x.numel for x in report.layers} == SIZES
    assert {x.name: x.zeros for x in report.layers} == {"0.weight": 0, "3.weight": 576, "8.weight": 0}
    assert (report.prunable, report.zeros) == (1288, 576)
    assert report.sparsity == pytest.approx(576 / 1288)
    assert report.compression == pytest.approx(1288 / 712)
    assert report.parameters == sum(p.numel() for p in network().parameters())


def test_prints_as_a_table():
    text = str(sparsity_report(sparse_network()))
    lines = text.splitlines()
    assert "3.weight" in lines[3] and "16x8x3x3" in lines[3] and "50.00%" in lines[3]  # noqa: PT018
    assert "total (prunable)" in lines[-2] and "1,288" in lines[-2]  # noqa: PT018
    assert lines[-1].startswith("compression 1.81x")
    assert len({len(line) for line in lines[:-1]}) == 1


def test_a_compact_model_is_compared_with_the_dense_one_too():
    net = network()
    prune_channels(net, torch.randn(2, 1, 8, 8), keep={"1.weight": range(4)}, verify=False)
    report = sparsity_report(net)
    assert report.zeros == 0
    assert report.compression == 1
    assert report.removed == 36 + 576
    assert report.dense_compression == pytest.approx(1288 / 676)
    lines = str(report).splitlines()
    assert lines[-2].startswith("compression 1.00x (1.91x against the dense model); ")
    assert lines[-1] == "compact: 676 of 1,288 prunable weights are left"
    with torch.no_grad():
        net[3].weight.view(-1)[:338] = 0
    sparse = sparsity_report(net)
    assert sparse.dense_compression == pytest.approx(1288 / 338)
    assert sparsity_report(network()).dense_compression == 1


def test_is_frozen():
    with pytest.raises(AttributeError):
        sparsity_report(network()).layers = ()


def test_patterns_and_errors():
    assert [x.name for x in sparsity_report(network(), include=["3"]).layers] == ["3.weight"]
    assert [x.name for x in sparsity_report(network(), exclude=["3"]).layers] == ["0.weight", "8.weight"]
    with pytest.raises(ValueError, match="'head' matches no prunable weight"):
        sparsity_report(network(), include=["head"])
    with pytest.raises(ValueError, match="no conv or linear weight"):
        sparsity_report(nn.BatchNorm2d(3))


def test_masks_of_every_kind_are_counted():
    gated = network()
    targets, _ = find_targets(gated)
    attach(gated, {t.name: HardGate(t.param.detach().square().median()) for t in targets})
    assert sparsity_report(gated).zeros == 36 + 576 + 32
    detach(gated)
    assert sparsity_report(gated).zeros == 0

    hooked = network()
    prune.l1_unstructured(hooked[3], "weight", amount=0.25)
    assert sparsity_report(hooked).zeros == 288

    class Half(nn.Module):
        def forward(self, w):
            return torch.cat([w[: len(w) // 2], torch.zeros_like(w[len(w) // 2 :])])

    parametrized = network()
    parametrize.register_parametrization(parametrized[3], "weight", Half())
    assert sparsity_report(parametrized).zeros == 576


def test_tied_weights_count_once():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    net[1].weight = net[0].weight
    with torch.no_grad():
        net[0].weight[0] = 0
    report = sparsity_report(net)
    assert (report.prunable, report.zeros) == (24, 4)


def test_metrics_add_up_over_updates_and_reset():
    sparsity, compression = Sparsity(), CompressionRatio()
    assert sparsity.compute() == 0
    assert compression.compute() == 1
    for weights in (sparse_network(), torch.zeros(712)):
        sparsity.update(weights)
        compression.update(weights)
    assert sparsity.compute().item() == pytest.approx(1288 / 2000)
    assert compression.compute().item() == pytest.approx(2000 / 712)
    again = copy.deepcopy(sparsity)
    sparsity.reset()
    sparsity.update(torch.ones(3))
    assert sparsity.compute() == 0
    assert again.compute() > 0.6
    compression.reset()
    compression.update(torch.zeros(3))
    assert compression.compute() == torch.inf


def test_metric_states_are_summed_over_ranks():
    assert {k: f.__name__ for k, f in Sparsity()._reductions.items()} == {
        "zeros": "dim_zero_sum",
        "total": "dim_zero_sum",
    }


def test_docstring_examples():
    result = doctest.testmod(lightning_prune.metrics.sparsity)
    assert result.attempted >= 4
    assert result.failed == 0
