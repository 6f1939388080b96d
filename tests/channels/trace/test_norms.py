"""A trace with norms on the fast way is the trace that PyTorch makes without it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_prune.channels.trace.export import export
from lightning_prune.errors import TraceError


class _Norms(nn.Module):
    """BatchNorm and LayerNorm of several kinds, on tensors that are and are not contiguous."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norms = nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(8, affine=False)])
        self.own = nn.BatchNorm2d(8, track_running_stats=False)
        self.layers = nn.ModuleList([nn.LayerNorm(8), nn.LayerNorm(8, elementwise_affine=False)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        for norm in self.norms:
            x = norm(x)
        x = self.own(x).permute(0, 2, 3, 1)
        for layer in self.layers:
            x = layer(x).transpose(1, 2)
        return x


def _seen(program: Any) -> list[tuple[Any, ...]]:
    """What a graph calls, on what, where, and what comes out."""
    rows: list[tuple[Any, ...]] = []
    for node in program.graph.nodes:
        out = node.meta.get("val")
        kind = (out.shape, out.dtype, out.stride()) if isinstance(out, Tensor) else out
        stack = list(node.meta.get("nn_module_stack", {}).values())
        rows.append((node.name, node.target, str(node.args), str(node.kwargs), stack, str(kind)))
    return rows


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_trace_is_pytorchs_own(training: bool, dtype: torch.dtype) -> None:
    model, x = _Norms().train(training).to(dtype), torch.randn(2, 3, 8, 8, dtype=dtype)
    with torch.no_grad():
        expected = torch.export.export(model, (x,), strict=False)
    found = export(model, x, training=training)
    assert _seen(found) == _seen(expected)
    calls = {str(node.target) for node in found.graph.nodes}
    assert "aten.layer_norm.default" in calls
    assert not any("lightning_prune" in call for call in calls)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(4), nn.LayerNorm(4)])
def test_norm_of_another_width_is_an_error(norm: nn.Module) -> None:
    with pytest.raises(TraceError, match="4"):
        export(nn.Sequential(nn.Conv2d(3, 8, 3), norm).eval(), torch.zeros(2, 3, 8, 8))
