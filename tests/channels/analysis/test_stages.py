"""Stages: which residual branches are found, and why others stay."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_prune.channels.analysis.branches import Branches
from lightning_prune.channels.analysis.stages import Stage, silence_, stages_of
from lightning_prune.channels.graph.graph import ChannelGraph


def branch(end: nn.Module | None = None, inside: nn.Module | None = None) -> nn.Sequential:
    last = nn.BatchNorm2d(4) if end is None else end
    return nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), inside or nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1), last)


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.fc(x.mean((2, 3), keepdim=True)))


class Around(nn.Module):
    """A residual branch with another one in it."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.inner = branch(), branch()

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        return y + self.inner(y)


class Net(nn.Module):
    """Blocks on one stream, a strided one, and blocks on the next stream."""

    def __init__(self, *blocks: nn.Module, after: int = 2) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.blocks = nn.ModuleList(blocks)
        self.shortcut, self.strided = nn.Conv2d(4, 4, 1, stride=2), nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.more = nn.ModuleList(branch() for _ in range(after))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(F.relu(x))
        x = self.shortcut(x) + self.strided(x)
        for block in self.more:
            x = F.relu(block(x) + x)
        return self.head(x.mean((2, 3)))


X = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def found(net: nn.Module, stay: str = "", fixed: tuple[str, ...] = ()) -> tuple[ChannelGraph, list[Stage]]:
    graph = ChannelGraph.trace(net.eval(), X)
    held = torch.zeros(graph.size, dtype=torch.bool)
    if stay:
        held[graph.axes[stay][0]] = True
    return graph, stages_of(Branches(net, graph), held, fixed)


def test_a_stage_is_a_run_of_branches_on_one_stream() -> None:
    net = Net(branch(), branch(), branch(), branch())
    graph, stages = found(net, stay="blocks.0.0.weight", fixed=("blocks.1.3.bias",))
    assert [(s.blocks, [b.end for b in s.branches]) for s in stages] == [
        (4, ["blocks.2.3", "blocks.3.3"]),  # the first two must not change
        (3, ["more.0.3", "more.1.3"]),  # the strided block stays
    ]
    one = stages[0].branches[1]
    assert one.layers == {"blocks.3.0", "blocks.3.2"}
    assert one.inside.nonzero().flatten().tolist() == graph.axes["blocks.3.0.weight"][0].tolist()


def test_what_cannot_be_taken_out_stays() -> None:
    twice = branch()  # its last layer adds at two places
    direct = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))  # no channels of its own
    odd = (branch(Gate()), branch(nn.Sigmoid()), direct, Around(), twice, twice)
    _, stages = found(Net(branch(), *odd, after=0))
    assert [(s.blocks, [b.end for b in s.branches]) for s in stages] == [
        (7, ["blocks.0.3"]),
        (1, ["blocks.4.inner.3"]),
    ]


def test_a_silenced_branch_adds_nothing() -> None:
    lasts = (nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.Identity(), nn.Dropout(), nn.ReLU())
    net = Net(*map(branch, lasts), after=0)
    _, stages = found(net)
    ends = [b.end for b in stages[0].branches]
    assert ends == ["blocks.0.3", "blocks.1.3", "blocks.2.2", "blocks.3.2", "blocks.4.2"]
    silence_([net], ends)
    whole = net(X).detach()
    net.blocks = nn.ModuleList()
    torch.testing.assert_close(whole, net(X).detach())
