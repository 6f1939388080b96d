"""Layers that become two, in place: what they compute, how they train, what they cost, and undo."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_prune import (
    ChannelCost,
    ChannelGraph,
    factorize,
    plan_of,
)
from lightning_prune.channels.surgery.factored import FactoredLayer
from tests.factors.networks import RANKS, X, factorized, network, truncated


def test_two_layers_compute_what_the_truncated_one_does_and_undo_gives_it_back() -> None:
    model, wanted = network(), truncated(network(), RANKS)
    before = dict(model.named_parameters())
    objects, keys = [id(m) for m in model], list(model.state_dict())
    calls: list[Any] = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    plan = factorize(model, ranks=RANKS)
    assert [id(m) for m in model] == objects  # hooks, shared layers and whoever holds one stay
    assert model[3] is model[5]
    torch.testing.assert_close(model(X), wanted(X), rtol=1e-4, atol=1e-5)
    assert calls == [1]
    assert {n for n in model.state_dict() if n.startswith("0.")} == {"0.0.weight", "0.1.weight", "0.1.bias"}
    assert model.get_parameter("0.0.weight") is before["0.weight"]
    layer, lower = model[0], model[0][0]
    assert (layer.rank, layer.in_channels, layer.out_channels) == (4, 3, 12)
    assert (lower.stride, lower.padding, lower.padding_mode, lower.bias) == ((2, 2), (1, 1), "reflect", None)
    torch.testing.assert_close(layer.weight, wanted[0].weight, rtol=1e-4, atol=1e-5)
    assert layer.bias is before["0.bias"]
    assert not hasattr(model[10], "in_channels")
    assert (model[10].in_features, model[10].out_features) == (16, 10)

    after = model(X)
    assert plan_of(model) == plan
    plan.undo(model)
    assert plan_of(model) is None
    assert list(model.state_dict()) == keys
    assert [type(m) for m in model] == [type(m) for m in network()]
    assert [vars(m).get("stride") for m in model] == [vars(m).get("stride") for m in network()]
    assert all(model.get_parameter(n) is p for n, p in before.items())
    torch.testing.assert_close(model(X), after, rtol=1e-4, atol=1e-5)


def test_gradients_and_optimizers_follow() -> None:
    model = network()
    optimizer = torch.optim.Adam([{"params": [*model[:3].parameters()]}, {"params": [*model[3:].parameters()]}])
    model(X).square().sum().backward()
    optimizer.step()
    grad, order = model[10].weight.grad.clone(), optimizer.param_groups
    factorize(model, ranks={"0": 4, "10": 4}, optimizers=[optimizer])
    wanted = [*model[:3].parameters()], [*model[3:].parameters()]
    assert all([id(p) for p in g["params"]] == [id(p) for p in w] for g, w in zip(order, wanted, strict=True))
    lower, upper = model[10]
    assert lower.weight not in optimizer.state
    assert upper.bias in optimizer.state
    torch.testing.assert_close(lower.weight.grad, upper.weight.T @ grad)
    torch.testing.assert_close(upper.weight.grad, grad @ lower.weight.T)
    before = model(X)
    optimizer.step()
    assert not torch.equal(model(X), before)
    fresh = torch.optim.Adam([{"params": [*model[:3].parameters()]}, {"params": [*model[3:].parameters()]}])
    fresh.load_state_dict(optimizer.state_dict())  # as a resumed run has it


def test_averaged_copies_are_least_squares_fits_on_the_same_directions() -> None:
    model = network()
    average = torch.optim.swa_utils.AveragedModel(model)
    with torch.no_grad():
        average.module[10].weight.add_(0.01 * torch.randn(10, 16))
    dense = average.module[10].weight.clone()
    factorize(model, ranks={"10": 4}, averaged=[average])
    own, like = model[10], average.module[10]
    assert torch.equal(own[1].weight, like[1].weight)
    directions = own[1].weight @ torch.linalg.pinv(own[1].weight)
    torch.testing.assert_close(like.weight, directions @ dense, rtol=1e-4, atol=1e-5)
    model[10][1].weight.data.add_(1.0)
    average.update_parameters(model)
    assert torch.equal(own[1].weight, like[1].weight)
    own[1].weight.data.zero_()
    assert like[1].weight.abs().sum() > 0


def test_copies_pickles_and_compiled_models_run_the_two_layers() -> None:
    model = network()
    compiled = torch.compile(model, backend="eager")
    compiled(X)
    factorize(model, ranks=RANKS)
    after = model(X)
    torch.testing.assert_close(compiled(X), after)  # what was compiled before is compiled anew
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(X), after)
        assert isinstance(twin[0], FactoredLayer)
        plan_of(twin).undo(twin)
        torch.testing.assert_close(twin(X), after, rtol=1e-4, atol=1e-5)


def test_costs_are_those_of_the_two_layers() -> None:
    dense, model = network(), factorized(network())
    x = X[:1]

    def macs(net: nn.Module) -> int:
        return int(ChannelCost.of(ChannelGraph.trace(net, x)).macs())

    at = {"0": 36, "3": 2 * 36, "6": 9, "10": 1}  # positions; the third is used twice
    shapes = {"0": (12, 27), "3": (12, 12), "6": (16, 12), "10": (10, 16)}
    saved = sum(at[p] * (shapes[p][0] * shapes[p][1] - r * sum(shapes[p])) for p, r in RANKS.items())
    assert macs(dense) - macs(model) == saved  # strides stay on the first of the two


def test_an_exported_program_computes_the_same(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model = factorized(network())
    buffer = io.BytesIO()
    torch.onnx.export(model, (X,), buffer, dynamo=False)
    session = onnxruntime.InferenceSession(buffer.getvalue())
    (found,) = session.run(None, {session.get_inputs()[0].name: X.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model(X).detach(), rtol=1e-3, atol=1e-4)
