"""Whose fault an exception is said to be: the network's only if a module was called below the package's last call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import nn

from lightning_prune.errors import ChannelError
from lightning_prune.masks import Gate, attach
from lightning_prune.masks.units import WeightUnits
from lightning_prune.support.faults import is_networks, is_out_of_memory, reraise_ours
from lightning_prune.zoo import models  # noqa: F401  (registers the network)


class Fails(nn.Module):
    """Raises what it is given."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.inner, self.error = nn.Identity(), error

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise self.error


class Broken(Gate):
    """A gate with a fault."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        raise ZeroDivisionError("in the gate")


def gated() -> nn.Module:
    net = nn.Sequential(nn.Linear(2, 2))
    attach(net, {"0.weight": Broken()})
    return net


def raised(call: Callable[..., Any], *args: Any) -> Exception:
    with pytest.raises(Exception) as info:  # noqa: PT011
        call(*args)
    return info.value


X = torch.zeros(1, 2)
NETWORKS: dict[str, tuple[Callable[..., Any], Any]] = {
    "its own code": (nn.Sequential(Fails(KeyError("on purpose"))), X),
    "torch, in its layer": (nn.Linear(3, 3), X),
    "a network of ours": (timm.create_model("resnet20_cifar"), X),
}
OTHERS: dict[str, tuple[Callable[..., Any], Any]] = {
    "the package, called directly": (WeightUnits((), ()).join, ()),
    "a gate, called by the network": (gated(), X),
    "no module at all": (torch.zeros(2).view, 3),
    "memory": (Fails(MemoryError()), X),
    "memory of a device": (Fails(torch.OutOfMemoryError()), X),
    "memory, in torch's words": (Fails(RuntimeError("DefaultCPUAllocator: can't allocate memory")), X),
}


@pytest.mark.parametrize("case", NETWORKS)
def test_the_networks(case: str) -> None:
    error = raised(*NETWORKS[case])
    assert is_networks(error)
    assert not is_out_of_memory(error)


@pytest.mark.parametrize("case", OTHERS)
def test_not_the_networks(case: str) -> None:
    error = raised(*OTHERS[case])
    assert not is_networks(error)
    assert is_out_of_memory(error) == case.startswith("memory")


def test_checks_let_only_the_networks_errors_pass() -> None:
    for error in (ChannelError("x"), raised(*NETWORKS["torch, in its layer"]), raised(*NETWORKS["its own code"])):
        reraise_ours(error)
    with pytest.raises(MemoryError):
        reraise_ours(MemoryError())
    with pytest.raises(ValueError, match="which is no parameter"):
        reraise_ours(raised(attach, nn.Linear(2, 2), {"nowhere": Broken()}))
