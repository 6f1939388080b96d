"""Layers that become two: in place, saved, loaded, exported, cut further, undone; and what cannot be."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from lightning_prune import (
    ChannelCost,
    ChannelGraph,
    CompactCheckpoint,
    PlanError,
    PruningPlan,
    factorize,
    load_pruned,
    plan_factors,
    plan_of,
    prune_channels,
    save_pruned,
    sparsity_report,
    take_shapes,
)
from lightning_prune.channels.surgery.factored import FactoredLayer
from lightning_prune.errors import BudgetError, PrunedFileError, TargetError
from tests.toy import Toy

SMALL = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 5}


def vit() -> nn.Module:
    """A ViT of one block."""
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", **SMALL).eval()


def network() -> nn.Sequential:
    """Convolutions with kernel, stride, padding and none of them, one used twice, and a linear layer."""
    torch.manual_seed(0)
    shared = nn.Conv2d(12, 12, 1)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, stride=2, padding=1, padding_mode="reflect"), nn.BatchNorm2d(12), nn.ReLU(),
        shared, nn.ReLU(), shared, nn.Conv2d(12, 16, 1, stride=2, bias=False), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    ).eval()  # fmt: skip


RANKS = {"0": 4, "3": 3, "6": 5, "10": 4}
X = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def truncated(model: nn.Module, ranks: dict[str, int]) -> nn.Module:
    """The dense model with the truncated decompositions of its weights, by PyTorch's own."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for path, rank in ranks.items():
            w = model.get_submodule(path).weight
            u, s, v = torch.linalg.svd(w.flatten(1), full_matrices=False)
            w.copy_(((u[:, :rank] * s[:rank]) @ v[:rank]).view_as(w))
    return model


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


def test_files_bring_the_two_layers_back(tmp_path: Path) -> None:
    model, x = vit(), torch.randn(2, 3, 16, 16)
    factorize(model, energy=0.6)
    output = model(x)
    loaded = load_pruned(save_pruned(model, tmp_path / "vit.safetensors")).eval()
    assert torch.equal(loaded(x), output)
    assert plan_of(loaded) == plan_of(model)
    assert torch.equal(load_pruned(tmp_path / "vit.safetensors", vit()).eval()(x), output)
    twin = load_pruned(save_pruned(factorized(network()), tmp_path / "own.safetensors"), network()).eval()
    assert torch.equal(twin(X), factorized(network())(X))
    other = vit()
    factorize(other, energy=0.4)
    with pytest.raises(PrunedFileError, match="compact by another pruning plan"):
        load_pruned(tmp_path / "vit.safetensors", other)


def factorized(model: nn.Module, ranks: Any = RANKS) -> nn.Module:
    factorize(model, ranks=ranks)
    return model


def test_checkpoints_bring_the_two_layers_back() -> None:
    class Module(CompactCheckpoint, Toy):
        pass

    module, checkpoint = Module(), dict[str, Any]()
    factorize(module.net, target_params=0.5)
    module.on_save_checkpoint(checkpoint)
    checkpoint["state_dict"] = module.state_dict()
    x = torch.randn(2, 1, 8, 8)
    for other in (Module(), factorized(Module(), 1)):  # a dense one, and one of another plan
        other.on_load_checkpoint(checkpoint)
        other.load_state_dict(checkpoint["state_dict"])
        assert torch.equal(other.eval()(x), module.eval()(x))
    take_shapes(other, {})
    other.load_state_dict(Toy().state_dict())  # dense again


@pytest.mark.parametrize("first", ["factors", "channels"])
def test_with_channels_removed_before_or_after(first: str, tmp_path: Path) -> None:
    model, x = vit(), torch.randn(2, 3, 16, 16)

    def cut() -> None:
        prune_channels(model, x, channels=0.5, score="l2")

    if first == "channels":
        cut()
    factorize(model, ranks={"blocks.0.mlp.fc1": 5, "blocks.0.attn.qkv": 4})
    if first == "factors":
        cut()
        ranks = [model.get_submodule(f"blocks.0.{path}").rank for path in ("mlp.fc1", "attn.qkv")]
        assert ranks < [5, 4]  # channels between the two can go as well
    output, plan = model(x), plan_of(model)
    loaded = load_pruned(save_pruned(model, tmp_path / "both.safetensors")).eval()
    assert torch.equal(loaded(x), output)
    assert PruningPlan.from_json(plan.to_json()) == plan
    again = vit()
    plan.apply(again)
    assert {n: t.shape for n, t in again.state_dict().items()} == {n: t.shape for n, t in model.state_dict().items()}
    report = sparsity_report(model)
    dense = sparsity_report(vit())
    assert report.prunable + report.removed == dense.prunable
    plan.undo(model)
    assert {n: t.shape for n, t in model.state_dict().items()} == {n: t.shape for n, t in vit().state_dict().items()}
    torch.testing.assert_close(model(x), output, rtol=1e-3, atol=1e-4)


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


def test_how_ranks_are_asked_for() -> None:
    model = network()
    assert {p: f.rank for p, f in plan_factors(model, ranks=3).factors.items()} == {"0": 3, "3": 3, "6": 3, "10": 3}
    assert {p: f.rank for p, f in plan_factors(model, ranks=6, exclude=["10"]).factors.items()} == {"0": 6, "6": 6}
    for energy in (0.5, 0.7):
        for path, factor in plan_factors(model, energy=energy).factors.items():
            s = torch.linalg.svdvals(model.get_submodule(path).weight.flatten(1)).square()
            assert s[: factor.rank].sum() >= energy * s.sum() > s[: factor.rank - 1].sum()
    dense = sum(p.numel() for p in model.parameters())
    plan = factorize(model, target_params=0.6)
    assert 0.6 * dense - 39 < sum(p.numel() for p in model.parameters()) <= 0.6 * dense
    assert str(plan_of(model)) == str(plan)


class Own(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_what_cannot_become_two_is_named() -> None:
    tied = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    tied[1].weight = tied[0].weight
    attention = nn.MultiheadAttention(8, 2)
    for model, reason in (
        (tied, "shared with another layer"),
        (nn.Sequential(Own(8, 8)), "Own has a forward of its own"),
        (attention, "no linear layer or convolution with a weight of its own"),
        (nn.Sequential(nn.Conv2d(8, 8, 3, groups=2)), "a grouped convolution"),
        (factorized(nn.Sequential(nn.Linear(8, 8)), 2), "a part of a factorised layer"),
        (nn.Sequential(nn.Linear(1, 8)), "two layers of rank 1 are no smaller"),
    ):
        with pytest.raises(ValueError, match=f"can be factorised .*{reason}"):
            factorize(model, ranks=1)
    model = network()
    state = copy.deepcopy(model.state_dict())
    for options, error, message in (
        ({"ranks": 2, "energy": 0.5}, ValueError, "give one of them"),
        ({}, ValueError, "give one of them"),
        ({"energy": 1.5}, ValueError, r"energy=1.5 .* in \(0, 1\)"),
        ({"ranks": {}}, ValueError, r"ranks={}: a rank is .* at least 1"),
        ({"ranks": {"0": 0}}, ValueError, r"ranks={'0': 0}: a rank is .* at least 1"),
        ({"ranks": 0}, ValueError, "ranks=0: a rank is .* at least 1"),
        ({"ranks": {"0": 2, "1": 2}}, PlanError, r"ranks names \['1'\], no layer .* those are 0, 3, 6, 10"),
        ({"exclude": ["nothing"]} | {"ranks": 2}, ValueError, "matches no"),
        ({"ranks": 12}, TargetError, r"ranks=12 factorises nothing.*0.weight below 8.3. Ask for less"),
        ({"target_params": 0.01}, BudgetError, "fewest components alone take"),
        ({"target_params": 2}, ValueError, "target_params=2"),
    ):
        with pytest.raises(error, match=message):
            factorize(model, **options)  # type: ignore[arg-type]
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())


def test_plans_that_do_not_fit_change_nothing() -> None:
    model = factorized(network())
    plan = plan_of(model)
    state = copy.deepcopy(model.state_dict())
    for wrong, message in (
        (plan, "factorised already"),
        (PruningPlan({}, factors={"0.0": plan.factors["0"]}), "factorised already"),
        (PruningPlan({}, factors={"2": plan.factors["0"]}), "no linear layer or convolution"),
        (PruningPlan({}, factors={"x": plan.factors["0"]}), "does not have"),
    ):
        with pytest.raises(PlanError, match=message):
            wrong.apply(model)
    with pytest.raises(PlanError, match=r"of shape \(12, 27, 3, 3\), its weight has"):
        PruningPlan({}, factors={"0": type(plan.factors["0"])((12, 27, 3, 3), 2)}).apply(network())
    vars(model).pop("_lightning_prune_compact")
    with pytest.raises(PlanError, match="factorised at rank 2, found rank 4"):
        PruningPlan({}, factors={"0": type(plan.factors["0"])((12, 3, 3, 3), 2)}).undo(model)
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())
    plan.undo(model)
    assert type(model[0]) is nn.Conv2d
