"""Heads that read a network beside its forward: found from the losses, and their channels stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_prune import MRTSCallback
from lightning_prune.callbacks.families.readers import _MIXING, Readers
from lightning_prune.channels.graph.graph import ChannelGraph
from tests.callbacks.methods import equal, fit, keep_all
from tests.callbacks.situations.modules import Projects, Reads
from tests.callbacks.test_removal import Outer
from tests.toy import Toy, samples

FIRST, SECOND = (
    {f"net.{conv}.{name}" for conv in (i, i + 1) for name in ("weight", "bias")} for i in (0, 3)
)  # a convolution and its norm


def read(module: Any, network: nn.Module) -> dict[str, str]:
    """What is read beside the forward of a network, by the loss of one step."""
    readers, batch = Readers(), samples(8).tensors
    readers.see(module, module.training_step(batch, 0))
    return readers.of(module, network, ChannelGraph.trace(network, batch[0]))


def test_a_head_is_found_and_what_it_reads() -> None:
    assert read(Reads(), (module := Reads()).net) == {}  # a network that is no part of the module
    assert read(module, module.net).keys() == {name.removeprefix("net.") for name in SECOND}
    assert read(module, module) == dict.fromkeys(SECOND, "features.weight")
    both = Projects()
    assert read(both, both).keys() == FIRST | SECOND


@pytest.mark.parametrize("module", [Toy(), Outer()])
def test_what_forward_calls_is_no_head(module: Any) -> None:
    assert read(module, module) == {}


def test_a_frozen_convolution_ends_the_search() -> None:
    """Its norm trains: what the head reads is behind it, and not the first layer before it, frozen or not."""
    module = Reads()
    module.net[3].requires_grad_(False)
    assert read(module, module).keys() == {"net.4.weight", "net.4.bias"}
    module.net[0].requires_grad_(False)
    assert read(module, module).keys() == {"net.4.weight", "net.4.bias"}


MIXING = {
    "conv1d": lambda x, w: F.conv1d(x[0], w[0]),
    "conv2d": lambda x, w: F.conv2d(x, w),
    "conv_transpose2d": lambda x, w: F.conv_transpose2d(x, w),
    "linear with a bias": lambda x, w: F.linear(x[0, 0], w[0, 0], w[0, 0, 0]),
    "linear without": lambda x, w: F.linear(x[0, 0], w[0, 0]),
    "linear over positions": lambda x, w: F.linear(x, w[0, 0], w[0, 0, 0]),
    "matmul": lambda x, w: x[0, 0] @ w[0, 0],
    "bmm": lambda x, w: torch.bmm(x[0], w[0]),
    "baddbmm": lambda x, w: torch.baddbmm(x[0], x[0], w[0]),
    "mv": lambda x, w: torch.mv(w[0, 0], x[0, 0, 0]),
    "addmv": lambda x, w: torch.addmv(x[0, 0, 0], w[0, 0], x[0, 0, 0]),
}


@pytest.mark.parametrize("operator", MIXING)
def test_autograd_calls_sums_over_channels_by_the_names_that_readers_know(operator: str) -> None:
    """Nodes of autograd have nothing but their names to tell them by; in torch 2.14 these."""
    x, w = torch.ones(3, 3, 3, 3), torch.ones(3, 3, 3, 3, requires_grad=True)
    names, stack = set[str](), [MIXING[operator](x, w).grad_fn]
    while stack:
        node = stack.pop()
        names.add(node.name())
        stack += [child for child, _ in node.next_functions if child is not None]
    assert [name for name in names if name.startswith(_MIXING)], f"torch {torch.__version__} names {sorted(names)}"


class Sequences(Toy):
    """A linear layer over positions, whose loss goes through transposes, a norm of length and a product."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 12), nn.LayerNorm(12), nn.GELU(), nn.Linear(12, 4))
        self.centers = nn.Parameter(torch.randn(12, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x.squeeze(1)).mean(1)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x, y = batch
        inner = self.net[:3](x.squeeze(1))
        distances = F.normalize(inner, dim=-1).transpose(1, 2).mean(2) @ self.centers
        return F.cross_entropy(self(x), y) + distances.square().mean()


def test_a_parameter_of_the_module_itself_reads_too() -> None:
    module = Sequences()
    found = read(module, module.net)
    assert found == dict.fromkeys(["0.weight", "0.bias", "1.weight", "1.bias"], "centers")


def test_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    """From the warm-up, whose losses have shown who reads, its last batch, and the sparsify phase."""
    options: dict[str, Any] = {"target_macs": 0.5}
    whole, callback, _ = fit(tmp_path / "whole", MRTSCallback, Reads(), [keep_all(tmp_path, 4)], options=options)
    assert callback.units.frozen["net.4"] == "read by features.weight outside of forward"
    assert whole.net[3].out_channels == whole.features.in_features == 16
    assert whole.net[0].out_channels < 8
    for step in (4, 8, 16):
        file = tmp_path / f"step={step}.ckpt"
        again, _, _ = fit(tmp_path / "again", MRTSCallback, Reads(), ckpt_path=file, options=options)
        assert equal(whole, again), step
