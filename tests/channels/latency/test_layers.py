"""What is timed: the layers of a network at any widths, and what lies between the widths that were measured."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from lightning_prune import ChannelGraph, ChannelUnits
from lightning_prune.channels.graph.cost import ChannelCost
from lightning_prune.channels.latency.layers import kept_widths, timed_layers
from lightning_prune.channels.latency.table import LayerTable, measure
from lightning_prune.channels.select.selector import Selector
from tests.channels.latency.clocks import Counter
from tests.channels.models import Branches, Chain

NETWORKS = {
    "branches": Branches,
    "flattened": Chain,
    "depthwise": lambda: timm.create_model("test_efficientnet"),
    "grouped": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3, padding="same"), nn.ReLU(), nn.Conv2d(8, 12, 3, stride=2, groups=4), nn.Flatten(),
        nn.Linear(12 * 15 * 15, 3),
    ),
}  # fmt: skip


@pytest.mark.parametrize("groups", ["tie", "whole"])
@pytest.mark.parametrize("name", NETWORKS)
def test_layers_at_their_widths_cost_what_the_graph_counts(name: str, groups: str) -> None:
    model = NETWORKS[name]().eval()
    graph = ChannelGraph.trace(model, torch.zeros(2, 3, 32, 32), groups=groups)
    cost, layers = ChannelCost.of(graph), timed_layers(graph, batch=1)
    everything = torch.ones(graph.size, dtype=torch.bool)
    fixed = cost.macs() - sum(layer.shape.macs() for layer in layers)
    units = ChannelUnits.of(model, graph)
    selector = Selector(units, rule=None, budget=None, delta=0, min_channels=1, divisor=1)
    for share in (1.0, 0.8, 0.6):
        keep = everything.clone() if share == 1.0 else selector.select(
            torch.rand(graph.size, generator=torch.Generator().manual_seed(0)), budget=("macs", share)
        ).keep  # fmt: skip
        shapes = [layer.at(*kept_widths(layer, keep)) for layer in layers]
        assert sum(s.macs() for s in shapes) + fixed == pytest.approx(cost.macs(keep), abs=2)
    batch = 3
    assert sum(x.shape.macs() for x in timed_layers(graph, batch)) == batch * sum(x.shape.macs() for x in layers)


def test_between_measured_widths_a_table_is_bilinear() -> None:
    rows, columns = torch.tensor([2.0, 4.0, 8.0]).double(), torch.tensor([1.0, 3.0]).double()
    table = LayerTable(rows, columns, rows[:, None] * columns + 5)
    at = torch.tensor([2.0, 3.0, 7.0, 8.0]).double()
    assert torch.allclose(table.time(at, torch.full_like(at, 2.5)), at * 2.5 + 5)
    outside = table.time(torch.tensor([1.0, 9.0]).double(), torch.tensor([0.0, 9.0]).double())
    assert outside.tolist() == [2 * 1 + 5, 8 * 3 + 5]
    fixed = LayerTable(rows, columns[:1], rows[:, None] + 1)
    assert fixed.time(at, torch.ones_like(at)).tolist() == (at + 1).tolist()


def test_equal_layers_are_measured_once_at_multiples_of_the_divisor() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3), *(m for _ in range(3) for m in (nn.Conv2d(32, 32, 3, padding=1), nn.ReLU())),
        nn.Flatten(), nn.Linear(32 * 36, 2),
    )  # fmt: skip
    layers = timed_layers(ChannelGraph.trace(model, torch.zeros(1, 3, 8, 8)), batch=1)
    meter, known = Counter(), dict[str, float]()
    tables = measure(layers, meter, 8, known)
    inner = [s for s in meter.asked if (s.kernel, s.size) == ((3, 3), (6, 6))]
    assert len(inner) == 4 * 4  # 8, 16, 24 and 32, of each width
    assert all(s.inputs % 8 == 0 and s.outputs % 8 == 0 for s in inner)
    assert len(set(meter.asked)) == len(meter.asked) == len(known)
    again = Counter()
    assert all(torch.equal(a.seconds, b.seconds) for a, b in zip(tables, measure(layers, again, 8, known), strict=True))
    assert not again.asked
