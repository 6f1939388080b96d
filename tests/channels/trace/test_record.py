"""The recorder notes what `torch.export` exports; what it cannot note it leaves to that."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Node, map_arg
from torch.utils.checkpoint import checkpoint

from lightning_prune.channels.graph.propagate import bind
from lightning_prune.channels.trace.export import export
from lightning_prune.channels.trace.program import Program
from lightning_prune.channels.trace.record import record, trace_program
from lightning_prune.channels.trace.sites import module_path
from lightning_prune.errors import TraceError
from lightning_prune.support.modes import Arguments

X = torch.randn(2, 3, 8, 8)


class Mixed(nn.Module):
    """Norms of several kinds, views, in-place calls, constants, attention, several outputs, a checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(8, affine=False), nn.GroupNorm(2, 8)])
        self.own = nn.BatchNorm2d(8, track_running_stats=False)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.register_buffer("order", torch.arange(7, -1, -1))
        self.lstm = nn.LSTM(8, 4, batch_first=True)
        self.spare = nn.Linear(2, 2)

    def forward(self, x: Tensor, scale: float = 1.0) -> Any:
        x = self.conv(x)
        for norm in self.norms:
            x = norm(x)
        x = self.own(x).relu_()
        first, second = x.chunk(2, 1)
        x = torch.cat([first.to(x.dtype), second * scale], 1)[:, self.order]
        x[:, 0] += 1.0
        x = checkpoint(lambda v: v.sigmoid() * torch.tensor([0.5]), x, use_reentrant=False)
        tokens = self.layer(x.flatten(2).transpose(1, 2).contiguous())
        return {"map": x, "out": [self.lstm(tokens)[0], None]}


IGNORED = ("aten._assert_tensor_metadata", "aten.lift_fresh", "aten.detach")


def seen(program: Program) -> list[str]:
    """What a graph calls, on the results of which calls, where, and what comes out; in any order."""
    known: dict[Node, str] = {}
    for node in program.graph.nodes:
        out, target = node.meta.get("val"), str(node.target)
        if node.op == "placeholder":
            name = "input" if node.name in program.inputs else "constant"
            known[node] = program.states.get(node.name, name)
        elif target.startswith(IGNORED):
            known[node] = known[node.all_input_nodes[0]] if node.all_input_nodes else ""
        elif node.op == "call_function":
            bound = map_arg(bind(node.target, node.args, node.kwargs), known.__getitem__)
            bound = {name: value for name, value in bound.items() if not name.startswith("cudnn")}
            shape = (tuple(out.shape), out.dtype) if isinstance(out, Tensor) else None
            known[node] = f"{target}({bound}) {shape} {module_path(node)}"
            known[node] = hashlib.md5(known[node].encode()).hexdigest() + f" {target} {module_path(node)[0]}"
    calls = [node for node in known if node.op == "call_function" and not str(node.target).startswith(IGNORED)]
    return sorted(known[node] for node in calls)


def test_what_is_recorded_is_what_is_exported() -> None:
    model, example = Mixed(), Arguments((X,), {"scale": 2.0})
    found = record(model, example)
    assert seen(found) == seen(Program.of_export(export(model, example)))
    assert {"spare.weight", "spare.bias"} == set(found.unused())
    assert len(found.graph.output_node().args[0]) == 3


def test_nothing_is_left_behind() -> None:
    model, ambient = Cached(), torch.autocast("cpu")
    before = {name: id(tensor) for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    with ambient:
        program = record(model, X)
        assert torch.is_autocast_enabled("cpu")
    assert next(str(n.target) for n in program.graph.nodes if n.op == "call_function") == "aten.add_.Tensor"
    assert before == {name: id(tensor) for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    assert int(model.calls) == 0
    assert model.kept == []
    assert model.last is None
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.backends.mha.get_fastpath_enabled()
    assert not torch.is_inference_mode_enabled()
    model(X).sum().backward()
    assert model.conv.weight.grad is not None
    assert not isinstance(model.last, FakeTensor)


class Cached(nn.Module):
    """Counts its calls, and keeps tensors of a run."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.register_buffer("calls", torch.tensor(0))
        self.kept: list[Tensor] = []
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = self.conv(x)
        self.kept.append(self.last)
        return self.last


@dataclass
class Result:
    """What pytree knows nothing of."""

    logits: Tensor


class Hidden(nn.Module):
    """Does something that a recorder does not see, or cannot note."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.conv, self.kind = nn.Conv2d(3, 4, 3), kind

    def forward(self, x: Tensor) -> Any:
        x = self.conv(x)
        if self.kind == "a shape that changes in place":
            return x.unsqueeze_(0)
        if self.kind == "an unknown output":
            return Result(x)
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize("kind", ["a shape that changes in place", "an unknown output", "a branch on data"])
def test_what_cannot_be_noted_is_not_guessed(kind: str) -> None:
    model = Hidden(kind)
    with pytest.raises(Exception, match=r"in place|Result|_local_scalar_dense"):
        record(model, X)
    if kind == "a shape that changes in place":
        assert [str(n.target) for n in trace_program(model, X).graph.nodes][-2] == "aten.unsqueeze_.default"
    else:
        with pytest.raises(TraceError):
            trace_program(model, X)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(4), nn.LayerNorm(4)])
def test_norm_of_another_width_is_an_error(norm: nn.Module) -> None:
    with pytest.raises(TraceError, match="4"):
        trace_program(nn.Sequential(nn.Conv2d(3, 8, 3), norm).eval(), X)
