"""What is known of a call without fake tensors is what they say of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from lightning_prune.channels.trace.known import known_out

_ATEN = torch.ops.aten
X, Y = torch.randn(2, 6, 9, 8), torch.randn(2, 6, 9, 8)
W, G, B, M = torch.randn(4, 6, 3, 2), torch.randn(4, 2, 3, 3), torch.randn(4), torch.randn(6)
GREY = torch.randn(4, 1, 3, 3).to(memory_format=torch.channels_last)  # contiguous in either order

KNOWN: list[tuple[Any, tuple[Any, ...]]] = [
    (_ATEN.conv2d.default, (X, W)),
    (_ATEN.conv2d.default, (X, W, B, [2, 1], [1, 2], [2, 3])),
    (_ATEN.conv2d.default, (X, torch.randn(6, 2, 1, 1), None, [2, 2], [0, 0], [1, 1], 3)),
    (_ATEN.batch_norm.default, (X, M, M, M, M, False, 0.1, 1e-5, True)),
    (_ATEN.batch_norm.default, (X.to(memory_format=torch.channels_last), M, M, M, M, False, 0.1, 1e-5, True)),
    (_ATEN.layer_norm.default, (X, [9, 8], None, None, 1e-5)),
    (_ATEN.layer_norm.default, (X.transpose(1, 3), [9, 6], torch.randn(9, 6), torch.randn(9, 6), 1e-5)),
    (_ATEN.relu_.default, (X,)),
    (_ATEN.gelu.default, (X,)),
    (_ATEN.leaky_relu_.default, (X, 0.1)),
    (_ATEN.add.Tensor, (X, Y)),
    (_ATEN.mul_.Tensor, (X, Y)),
]
ASKED: list[tuple[Any, tuple[Any, ...]]] = [
    (_ATEN.conv2d.default, (X, torch.randn(4, 5, 1, 1))),
    (_ATEN.conv2d.default, (X, torch.randn(4, 6, 11, 1))),
    (_ATEN.conv2d.default, (X, W.double())),
    (_ATEN.conv2d.default, (X.to(memory_format=torch.channels_last), W)),
    (_ATEN.conv2d.default, (X[:, :1].contiguous(), GREY)),
    (_ATEN.batch_norm.default, (X, M, M, None, None, True, 0.1, 1e-5, True)),
    (_ATEN.add.Tensor, (X, M[:, None, None])),
    (_ATEN.add.Tensor, (X, Y.double())),
    (_ATEN.relu.default, (X.transpose(1, 2),)),
    (_ATEN.mean.dim, (X, [2, 3])),
]


@pytest.mark.parametrize(("call", "args"), KNOWN)
def test_what_is_known_is_what_a_fake_tensor_says(call: Any, args: tuple[Any, ...]) -> None:
    with FakeTensorMode() as fake, torch.inference_mode():
        given = pytree.tree_map_only(torch.Tensor, fake.from_tensor, args)
        found, wanted = known_out(call, given), call(*given)
        assert found is not None
        assert (found is given[0]) == (wanted is given[0])
        assert (found.shape, found.stride(), found.dtype, found.device) == (
            wanted.shape, wanted.stride(), wanted.dtype, wanted.device,
        )  # fmt: skip


@pytest.mark.parametrize(("call", "args"), ASKED)
def test_the_rest_is_asked(call: Any, args: tuple[Any, ...]) -> None:
    with FakeTensorMode() as fake, torch.inference_mode():
        assert known_out(call, pytree.tree_map_only(torch.Tensor, fake.from_tensor, args)) is None
