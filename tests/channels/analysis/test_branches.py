"""Branches that are removed: which may be, what is removed with them, and that nothing else changes."""

from __future__ import annotations

import copy
import logging

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from lightning_prune.channels import ChannelCost, ChannelGraph, PlanError, prune_channels
from lightning_prune.channels.analysis.branches import Branches
from lightning_prune.channels.surgery.empty import branch_names, is_empty_layer
from tests.channels.branching import EXAMPLE, LARGER, Parallel, backbone, kill, prune_whole, residual, same, train
from tests.channels.models import Chain, conv_bn, random_scores, randomise

CASES = {
    "resnet18, inner norm": ("resnet18", "layer2.0.bn1", True, "layer2.0"),
    "resnet18, last norm": ("resnet18", "layer3.1.bn2", False, "layer3.1"),
    "resnet26, last norm": ("resnet26", "layer2.1.bn3", False, "layer2.1"),
    "efficientnet_b0, inner norm": ("efficientnet_b0", "blocks.2.1.bn2", True, "blocks.2.1"),
    "mixnet_s, last norm": ("mixnet_s", "blocks.2.1.bn3", False, "blocks.2.1"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_dead_branch_is_removed_and_nothing_else_changes(case: str) -> None:
    name, norm, shift, branch = CASES[case]
    dense = kill(backbone(name), norm, shift=shift)
    model = copy.deepcopy(dense)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    held = list(model.parameters())
    result = prune_whole(model, LARGER, optimizers=[optimizer])
    assert branch_names(result.plan) == (branch,)
    assert f"without channels: {branch}" in str(result)
    assert result.notes == ()
    assert result.proof is not None
    assert result.proof.difference < 1e-12
    # the function, in float64
    x = LARGER.double()
    torch.testing.assert_close(
        copy.deepcopy(model).double()(x), copy.deepcopy(dense).double()(x), rtol=1e-12, atol=1e-12
    )
    # nothing is left of the layers that lost their channels, and the cost is what it was computed to be
    gone = {n for n, p in model.named_parameters() if not p.numel()}
    assert gone
    assert all(n.startswith(f"{branch}.") for n in gone)
    assert all(is_empty_layer(model.get_submodule(path)) for path in result.plan.empty)
    cost = ChannelCost.of(result.graph)
    assert cost.params(result.keep) == sum(p.numel() for p in model.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(LARGER)
    assert cost.macs(result.keep) == counter.get_total_flops() / 2 / len(LARGER)
    # it trains, all that is left of it
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    train(model, optimizer, LARGER)
    assert all(a is b for a, b in zip(held, model.parameters(), strict=True))
    for n, p in model.named_parameters():
        assert p.requires_grad == (n not in gone), n
        assert (p.grad is not None) == p.requires_grad, n
    still = {n for n, p in model.named_parameters() if torch.equal(p, before[n])} - gone
    # behind the branch is a norm of constants: its scale factors change nothing any more
    assert {n.removesuffix(".weight") for n in still} <= {n for n, _ in model.named_modules() if n.startswith(branch)}
    assert len(still) == 1
    # and back
    result.plan.undo(model)
    model.load_state_dict(dense.state_dict())
    assert same(model.eval(), dense)
    assert all(p.requires_grad for p in model.parameters())
    assert [type(m) for m in model.modules()] == [type(m) for m in dense.modules()]
    assert torch.equal(model(LARGER), dense(LARGER))


def test_the_only_path_keeps_a_channel() -> None:
    model = randomise(Chain())
    kill(model, "features.4")
    result = prune_whole(model, EXAMPLE)
    assert model.features[3].out_channels == 1
    assert any("features.4.weight keeps a channel" in n and "no other path" in n for n in result.notes)
    assert result.plan.empty == ()
    with pytest.raises(PlanError, match=r"would empty dim 0 of features\.0\.weight: no other path.*keep at least one"):
        prune_whole(randomise(Chain()), EXAMPLE, keep={"features.1": []})


def test_a_norm_of_zeros_on_the_only_path_makes_nothing_unused() -> None:
    model = kill(randomise(Chain()), "features.4", shift=False)
    branches = Branches(model, ChannelGraph.trace(model, EXAMPLE))
    assert branches.silent() == {"features.4"}
    assert not branches.unused(branches.silent()).any()


def test_two_branches_that_are_all_there_is_do_not_go_together() -> None:
    model = kill(randomise(Parallel()), "left.1", "right.1")
    before = model(EXAMPLE).detach()
    result = prune_whole(model, EXAMPLE)
    assert (model.left[0].out_channels, model.right[0].out_channels) == (0, 1)
    assert len(result.notes) == 1
    assert "right.1.weight" in result.notes[0]
    torch.testing.assert_close(model(EXAMPLE), before)


def test_a_gate_becomes_a_constant() -> None:
    model = backbone("efficientnet_b0")
    gate = model.blocks[1][0].se
    nn.init.zeros_(gate.conv_reduce.weight)
    nn.init.zeros_(gate.conv_reduce.bias)
    before = model(LARGER).detach()
    result = prune_whole(model, LARGER)
    assert result.plan.empty == ("blocks.1.0.se.conv_expand", "blocks.1.0.se.conv_reduce")
    torch.testing.assert_close(model(LARGER), before)
    model(LARGER).sum().backward()
    assert gate.conv_expand.bias.grad.any()


def test_what_is_constant_without_a_layer_goes_with_it() -> None:
    """Of two inner layers, the second is constant without the first, and nothing reads the first without the second."""
    first, second = "blocks.0.0.1", "blocks.0.1.1"
    for norm in (first, second):
        model = residual(between=conv_bn(6, 6))
        result = prune_whole(model, EXAMPLE, keep={norm: []})
        assert {first, second, "blocks.0.2"} <= set(result.plan.empty)
        assert sum(not p.numel() for p in model.parameters()) == 7
    # Without losing anything, only constants that fold exactly may go: a kernel of 1 sees no border.
    model = residual(first, between=conv_bn(6, 6))
    model.blocks[0][2] = nn.Conv2d(6, 8, 1, bias=False)
    before = model(EXAMPLE).detach()
    assert before.std(0).any()
    folded = copy.deepcopy(model)
    assert second in prune_whole(folded, EXAMPLE, constants="fold").plan.empty
    assert second not in prune_whole(model, EXAMPLE).plan.empty
    assert model.blocks[0][0][0].out_channels == 0
    for each in (model, folded):
        torch.testing.assert_close(each(EXAMPLE), before, rtol=1e-5, atol=1e-5)


class PreActivation(nn.Module):
    """Norms before convolutions, as in DenseNet and ResNet-v2: what feeds an emptied layer lives on."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.before = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.inner, self.norm, self.outer = nn.Conv2d(8, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 8, 1)
        self.short, self.head = nn.Conv2d(8, 8, 1, 2), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.relu(self.norm(self.inner(F.relu(self.before(x), inplace=True))), inplace=True)
        return self.head(F.relu(self.outer(y) + self.short(x)).mean((2, 3)))


def test_everything_that_is_left_gets_a_gradient() -> None:
    model = kill(randomise(PreActivation()), "norm")
    before = model(EXAMPLE).detach()
    prune_whole(model, EXAMPLE)
    torch.testing.assert_close(model(EXAMPLE), before)
    train(model, torch.optim.SGD(model.parameters(), 1e-3), EXAMPLE)
    assert all((p.grad is not None) == bool(p.numel()) for p in model.parameters())
    assert not model.before.weight.grad.any()


def test_requests_by_lists_thresholds_and_scores() -> None:
    norm = "blocks.0.0.1"
    scores = random_scores(residual())
    low = {n: s * 0.1 if n == norm else s + 0.2 for n, s in scores.items()}
    assert prune_whole(residual(), EXAMPLE, keep={norm: []}).plan.empty
    # scores empty nothing, not even zeros: scale factors of zero do
    for request in ({"ratio": 0.3}, {"macs": 0.7}, {"threshold": 0.15}):
        for given in (low, {**low, norm: torch.zeros_like(low[norm])}):
            result = prune_whole(residual(), EXAMPLE, given, **request)
            assert not result.plan.empty
            assert result.model.blocks[0][0][0].out_channels >= 1
        assert branch_names(prune_whole(residual(norm), EXAMPLE, scores, **request).plan) == ("blocks.0",)
        assert not prune_whole(residual(norm), EXAMPLE, scores, **request, remove_branches=False).plan.empty
    for switched in ({"remove_branches": False}, {"form": "graph"}):
        with pytest.raises(PlanError, match="would empty the layer; keep at least one"):
            prune_whole(residual(), EXAMPLE, keep={norm: []}, **switched)
    with pytest.raises(PlanError, match="would empty"):
        prune_whole(residual(), EXAMPLE, keep={"stem.1": []})


def test_by_default_only_dead_channels_go_and_no_layer_is_emptied() -> None:
    model = residual("blocks.0.0.1")
    prune_channels(model, EXAMPLE)
    assert model.blocks[0][0][0].out_channels == 1
    fresh = timm.create_model("resnet18", num_classes=5)
    assert not fresh.layer1[0].bn2.weight.any()  # timm starts branches at zero: they are silent, not dead
    for p in (fresh.layer2[0].bn1.weight, fresh.layer2[0].bn1.bias):
        p.data[:3] = 0.0
    prune_channels(fresh, LARGER)
    assert [m.bn1.num_features for m in (*fresh.layer1, *fresh.layer2)] == [64, 64, 125, 128]


class OnlyEval(nn.Module):
    """Needs channels while training."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0 * F.max_pool2d(x, 3, 1, 1) if self.training else x


@pytest.mark.parametrize("between", [nn.MaxPool2d(3, 1, 1), OnlyEval(), nn.PReLU(6)])
def test_code_that_needs_channels_keeps_one_and_says_so(between: nn.Module, caplog: pytest.LogCaptureFixture) -> None:
    model = residual("blocks.0.0.1", "blocks.1.0.1", between=between)
    before = model(EXAMPLE).detach()
    with caplog.at_level(logging.WARNING):
        result = prune_whole(model, EXAMPLE)
    assert [block[0][0].out_channels for block in model.blocks] == [1, 0]  # the other one goes
    assert len(result.notes) == 1
    assert result.notes[0] in caplog.text
    assert "blocks.0.0.1.weight keeps a channel" in result.notes[0]
    assert type(between).__name__ in result.notes[0] or "fails at" in result.notes[0]
    torch.testing.assert_close(model(EXAMPLE), before, rtol=1e-5, atol=1e-5)
    train(model, torch.optim.SGD(model.parameters(), 1e-3), EXAMPLE)


def test_a_list_that_only_the_code_refuses_is_floored() -> None:
    model = residual(between=nn.MaxPool2d(3, 1, 1))
    result = prune_whole(model, EXAMPLE, keep={"blocks.0.0.1": []})
    assert model.blocks[0][0][0].out_channels == 1
    assert "fails at blocks.0.1 (MaxPool2d)" in result.notes[0]
