"""A check runs on one image, where the network can do with one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from lightning_prune import prune_channels
from tests.channels.models import conv_bn


class Counted(nn.Module):
    """Runs on any number of images, or on pairs alone; notes how many came."""

    def __init__(self, pairs: bool, seen: list[int]) -> None:
        super().__init__()
        self.body, self.head = conv_bn(3, 8), nn.Linear(8, 5)
        self.__dict__["look"] = (pairs, lambda x: None if isinstance(x, FakeTensor) else seen.append(len(x)))

    def forward(self, x: Tensor) -> Tensor:
        pairs, note = self.__dict__["look"]
        note(x)
        x = self.body(x)
        return self.head((x.unflatten(0, (-1, 2)).sum(1) if pairs else x).mean((2, 3)))


@pytest.mark.parametrize(("pairs", "expected"), [(False, {1}), (True, {1, 4})])
def test_one_image_is_enough_unless_the_network_needs_more(pairs: bool, expected: set[int]) -> None:
    seen: list[int] = []
    model = Counted(pairs, seen).eval()
    proof = prune_channels(model, torch.randn(4, 3, 8, 8), scores={"body.1": torch.rand(8)}, ratio=0.4).proof
    assert proof is not None
    assert proof.equal
    assert proof.dtype == torch.float64
    assert set(seen) == expected
