"""Branches that go whole: which may, what goes with them, and that everything downstream works without them."""

from __future__ import annotations

import copy
import io
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel
from torch.utils.flop_counter import FlopCounterMode

from lightning_prune import Sparsity, load_pruned, save_pruned, sparsity_report
from lightning_prune.channels import ChannelCost, ChannelGraph, PlanError, PruningPlan, SurgeryError, prune_channels
from lightning_prune.channels import recalibrate as fresh_statistics
from lightning_prune.channels.choose import Chooser
from lightning_prune.channels.hollow import is_hollow, whole_branches
from lightning_prune.channels.scales import ScaleFactors
from lightning_prune.compact import plan_of
from lightning_prune.masking import find_targets
from tests.channels.models import Chain, conv_bn, random_scores, randomise

EXAMPLE = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
LARGER = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Residual(nn.Module):
    """A stem, residual blocks of two convolutions each, a head; `between` runs inside the first block."""

    def __init__(self, blocks: int = 2, between: nn.Module | None = None) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.blocks = nn.ModuleList(
            nn.Sequential(conv_bn(8, 6), nn.Identity(), nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
            for _ in range(blocks)
        )
        if between is not None:
            self.blocks[0][1] = between
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = F.relu(x + block(x))
        return self.head(x.mean((2, 3)))


class Parallel(nn.Module):
    """Two branches side by side and nothing around them."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = conv_bn(3, 6), conv_bn(3, 7), nn.Linear(13, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.left(x), self.right(x)], 1).mean((2, 3)))


def kill(model: nn.Module, *norms: str, shift: bool = True) -> nn.Module:
    """No scale factors, and no shifts if `shift`."""
    for name in norms:
        norm = model.get_submodule(name)
        nn.init.zeros_(norm.weight)
        if shift:
            nn.init.zeros_(norm.bias)
    return model


def residual(*norms: str, shift: bool = True, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return kill(randomise(Residual(**options)), *norms, shift=shift)


def backbone(name: str) -> nn.Module:
    torch.manual_seed(0)
    return randomise(timm.create_model(name, num_classes=7))


def same(a: nn.Module, b: nn.Module) -> bool:
    x, y = a.state_dict(), b.state_dict()
    return x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    model.train()
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()


CASES = {
    "resnet18, inner norm": ("resnet18", "layer2.0.bn1", True, "layer2.0"),
    "resnet18, last norm": ("resnet18", "layer3.1.bn2", False, "layer3.1"),
    "resnet50, inner norm": ("resnet50", "layer2.1.bn2", True, "layer2.1"),
    "resnet26, last norm": ("resnet26", "layer2.1.bn3", False, "layer2.1"),
    "efficientnet_b0, inner norm": ("efficientnet_b0", "blocks.2.1.bn2", True, "blocks.2.1"),
    "efficientnet_b0, last norm": ("efficientnet_b0", "blocks.2.1.bn3", False, "blocks.2.1"),
    "mixnet_s, inner norm": ("mixnet_s", "blocks.2.1.bn2", True, "blocks.2.1"),
    "mixnet_s, last norm": ("mixnet_s", "blocks.2.1.bn3", False, "blocks.2.1"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_dead_branch_goes_whole_and_nothing_else_changes(case: str) -> None:
    name, norm, shift, branch = CASES[case]
    dense = kill(backbone(name), norm, shift=shift)
    model = copy.deepcopy(dense)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    held = list(model.parameters())
    result = prune_channels(model, LARGER, optimizers=[optimizer])
    assert whole_branches(result.plan) == (branch,)
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
    assert all(is_hollow(model.get_submodule(path)) for path in result.plan.hollow)
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


@pytest.mark.parametrize(("name", "norm"), [("resnet18", "layer2.0.bn1"), ("mixnet_s", "blocks.2.1.bn3")])
def test_plans_files_and_copies_hold_no_branch_either(name: str, norm: str, tmp_path: Path) -> None:
    dense = kill(backbone(name), norm)
    model = copy.deepcopy(dense)
    plan = prune_channels(model, LARGER).plan
    fresh = PruningPlan.from_json(plan.to_json()).apply(copy.deepcopy(dense))
    save_pruned(model, tmp_path / "x.safetensors")
    loaded = load_pruned(tmp_path / "x.safetensors").eval()
    copied = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    for other in (fresh, loaded, copied):
        assert same(other, model)
        assert plan_of(other) == plan
        assert {n for n, p in other.named_parameters() if p.requires_grad} == {
            n for n, p in model.named_parameters() if p.numel()
        }
        assert torch.equal(other(LARGER), model(LARGER))


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_optimizer_state_and_averaged_copies_follow(kind: str) -> None:
    model = residual("blocks.0.0.1")
    make: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "sgd": lambda p: torch.optim.SGD(p, 1e-3, momentum=0.9),
        "adam": lambda p: torch.optim.Adam(p, 1e-3, foreach=True),
    }
    optimizer = make[kind](model.parameters())
    train(model, optimizer, EXAMPLE)
    kill(model, "blocks.0.0.1")
    average = AveragedModel(model)
    prune_channels(model.eval(), EXAMPLE, optimizers=[optimizer], averaged=[average])
    for p, state in optimizer.state.items():
        assert all(v.shape == p.shape for v in state.values() if v.ndim)
    train(model, optimizer, EXAMPLE)
    average.update_parameters(model)
    assert whole_branches(plan_of(average)) == ("blocks.0", "blocks.0.0")[:1]
    assert average(EXAMPLE).isfinite().all()
    state = copy.deepcopy(optimizer.state_dict())  # resumed
    again = make[kind](copy.deepcopy(model).parameters())
    again.load_state_dict(state)
    again.step()
    assert fresh_statistics(model, [EXAMPLE]) == 1


def test_what_needs_no_gradient_needs_none_after() -> None:
    model = residual("blocks.0.0.1")
    frozen = model.blocks[0][0][0].weight.requires_grad_(False)
    result = prune_channels(model, EXAMPLE)
    assert not any(p.requires_grad for p in model.parameters() if not p.numel())
    result.plan.undo(model)
    assert [p for p in model.parameters() if not p.requires_grad] == [frozen]


def test_the_only_path_keeps_a_channel() -> None:
    model = randomise(Chain())
    kill(model, "features.4")
    result = prune_channels(model, EXAMPLE)
    assert model.features[3].out_channels == 1
    assert any("features.4.weight keeps a channel" in n and "no other path" in n for n in result.notes)
    assert result.plan.hollow == ()
    with pytest.raises(PlanError, match=r"would empty dim 0 of features\.0\.weight: no other path.*keep at least one"):
        prune_channels(randomise(Chain()), EXAMPLE, keep={"features.1": []})


def test_a_norm_of_zeros_on_the_only_path_makes_nothing_useless() -> None:
    model = kill(randomise(Chain()), "features.4", shift=False)
    nn.init.ones_(model.features[4].bias)
    with pytest.raises(PlanError, match="nothing would be removed"):
        prune_channels(model, EXAMPLE)


def test_two_branches_that_are_all_there_is_do_not_go_together() -> None:
    model = kill(randomise(Parallel()), "left.1", "right.1")
    before = model(EXAMPLE).detach()
    result = prune_channels(model, EXAMPLE)
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
    result = prune_channels(model, LARGER)
    assert result.plan.hollow == ("blocks.1.0.se.conv_expand", "blocks.1.0.se.conv_reduce")
    torch.testing.assert_close(model(LARGER), before)
    model(LARGER).sum().backward()
    assert gate.conv_expand.bias.grad.any()


def test_what_is_constant_without_a_layer_goes_with_it() -> None:
    """Of two inner layers, the second is constant without the first, and nothing reads the first without the second."""
    first, second = "blocks.0.0.1", "blocks.0.1.1"
    for norm in (first, second):
        model = residual(between=conv_bn(6, 6))
        result = prune_channels(model, EXAMPLE, keep={norm: []})
        assert {first, second, "blocks.0.2"} <= set(result.plan.hollow)
        assert sum(not p.numel() for p in model.parameters()) == 7
    # Without losing anything, only constants that fold exactly may go: a kernel of 1 sees no border.
    model = residual(first, between=conv_bn(6, 6))
    model.blocks[0][2] = nn.Conv2d(6, 8, 1, bias=False)
    before = model(EXAMPLE).detach()
    assert before.std(0).any()
    folded = copy.deepcopy(model)
    assert second in prune_channels(folded, EXAMPLE, constants="fold").plan.hollow
    assert second not in prune_channels(model, EXAMPLE).plan.hollow
    assert model.blocks[0][0][0].out_channels == 0
    for each in (model, folded):
        torch.testing.assert_close(each(EXAMPLE), before, rtol=1e-5, atol=1e-5)


def test_requests_by_lists_thresholds_and_scores() -> None:
    norm = "blocks.0.0.1"
    scores = random_scores(residual())
    low = {n: s * 0.1 if n == norm else s + 0.2 for n, s in scores.items()}
    assert prune_channels(residual(), EXAMPLE, keep={norm: []}).plan.hollow
    assert prune_channels(residual(), EXAMPLE, low, threshold=0.15).plan.hollow
    assert not prune_channels(residual(), EXAMPLE, low, threshold=0.15, whole_branches=False).plan.hollow
    # an order alone empties nothing; zeros do
    for request in ({"ratio": 0.3}, {"macs": 0.7}):
        assert not prune_channels(residual(), EXAMPLE, low, **request).plan.hollow
        zero = {**low, norm: torch.zeros_like(low[norm])}
        assert whole_branches(prune_channels(residual(), EXAMPLE, zero, **request).plan) == ("blocks.0",)
    for switched in ({"whole_branches": False}, {"form": "graph"}):
        with pytest.raises(PlanError, match="would empty the layer; keep at least one"):
            prune_channels(residual(), EXAMPLE, keep={norm: []}, **switched)
    with pytest.raises(PlanError, match="would empty"):
        prune_channels(residual(), EXAMPLE, keep={"stem.1": []})
    model = residual(norm)
    prune_channels(model, EXAMPLE, whole_branches=False)
    assert model.blocks[0][0][0].out_channels == 1


class OnlyEval(nn.Module):
    """Needs channels while training."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0 * F.max_pool2d(x, 3, 1, 1) if self.training else x


@pytest.mark.parametrize("between", [nn.MaxPool2d(3, 1, 1), OnlyEval(), nn.PReLU(6)])
def test_code_that_needs_channels_keeps_one_and_says_so(between: nn.Module, caplog: pytest.LogCaptureFixture) -> None:
    model = residual("blocks.0.0.1", "blocks.1.0.1", between=between)
    before = model(EXAMPLE).detach()
    with caplog.at_level(logging.WARNING):
        result = prune_channels(model, EXAMPLE)
    assert [block[0][0].out_channels for block in model.blocks] == [1, 0]  # the other one goes
    assert len(result.notes) == 1
    assert result.notes[0] in caplog.text
    assert "blocks.0.0.1.weight keeps a channel" in result.notes[0]
    assert type(between).__name__ in result.notes[0] or "fails at" in result.notes[0]
    torch.testing.assert_close(model(EXAMPLE), before, rtol=1e-5, atol=1e-5)
    train(model, torch.optim.SGD(model.parameters(), 1e-3), EXAMPLE)


def test_a_list_that_only_the_code_refuses_is_floored() -> None:
    model = residual(between=nn.MaxPool2d(3, 1, 1))
    result = prune_channels(model, EXAMPLE, keep={"blocks.0.0.1": []})
    assert model.blocks[0][0][0].out_channels == 1
    assert "fails at blocks.0.1 (MaxPool2d)" in result.notes[0]


def test_pruned_again_and_back() -> None:
    dense = residual("blocks.0.0.1")
    model = copy.deepcopy(dense)
    first = prune_channels(model, EXAMPLE).plan
    graph = ChannelGraph.trace(model, EXAMPLE)
    assert "blocks.0.0.1.weight" not in graph.axes
    assert ScaleFactors.of(model, graph).frozen["blocks.0.0.1"] == "none of its channels is left"
    scores = {n: s for n, s in random_scores(model).items() if len(s)}
    second = prune_channels(model, EXAMPLE, scores, ratio=0.3).plan
    assert model.blocks[0][2].weight.shape[0] == model.stem[0].out_channels < 8  # the stream is not frozen
    third = prune_channels(model, EXAMPLE, keep={"blocks.1.0.1": []}).plan
    both = plan_of(model)
    assert both == first.then(second).then(third)
    assert whole_branches(both) == ("blocks.0", "blocks.1")
    assert torch.equal(PruningPlan.from_json(both.to_json()).apply(copy.deepcopy(dense))(EXAMPLE), model(EXAMPLE))
    assert both.below("blocks").hollow == tuple(path.removeprefix("blocks.") for path in both.hollow)
    with pytest.raises(SurgeryError, match="no rewritten graph runs a model whose branches went whole"):
        prune_channels(model, EXAMPLE, keep={"stem.1": [0, 1]}, form="graph")
    both.undo(model).load_state_dict(dense.state_dict())
    assert torch.equal(model(EXAMPLE), dense(EXAMPLE))


def test_a_tensor_left_whole_in_a_rewritten_graph_keeps_its_floor() -> None:
    model = residual()
    prune_channels(model, EXAMPLE, random_scores(model), ratio=0.3, form="graph")
    kill(model, "blocks.0.0.1")
    result = prune_channels(model, EXAMPLE)
    assert result.plan.hollow == ()
    assert model.blocks[0][0][0].weight.shape[0] == 1


def test_reports_and_weight_targets() -> None:
    model = residual("blocks.0.0.1")
    prune_channels(model, EXAMPLE)
    report = sparsity_report(model)
    assert report.removed == 6 * 8 * 9 * 2
    assert {row.name: row.sparsity for row in report.layers}["blocks.0.2.weight"] == 0.0
    assert "8x0x3x3" in str(report)
    metric = Sparsity()
    metric.update(model)
    assert metric.compute() == 0.0
    targets, skipped = find_targets(model)
    assert all(t.numel for t in targets)
    assert {s.name for s in skipped} == {"blocks.0.0.0.weight", "blocks.0.2.weight"}
    assert all("branch was removed whole" in s.reason for s in skipped)


def test_export_and_compile() -> None:
    model = kill(backbone("resnet18"), "layer1.0.bn1", "layer2.0.bn1")
    prune_channels(model, LARGER)
    expected = model(LARGER).detach()
    file = io.BytesIO()
    torch.onnx.export(model, (LARGER,), dynamo=True, verbose=False).save(file)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: LARGER.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)  # the same trace for any backend
    torch.testing.assert_close(compiled(LARGER), expected, rtol=1e-4, atol=1e-5)


def chooser(model: nn.Module, exclude: tuple[str, ...] = (), **options: Any) -> tuple[ScaleFactors, Chooser]:
    graph = ChannelGraph.trace(model, EXAMPLE)
    factors = ScaleFactors.of(model, graph, exclude)
    defaults = {"rule": "css", "budget": None, "delta": 1e-3, "min_channels": 0.5, "divisor": 1}
    return factors, Chooser(model, graph, factors, **(defaults | options))


def test_a_choice_counts_branches_that_go_whole() -> None:
    model = residual("blocks.0.0.1")
    factors, choose = chooser(model)
    choice = choose.choose(factors.sizes(factors.read()))
    small = copy.deepcopy(model)
    result = choose.cut(small, EXAMPLE, choice.keep, constants="fold")
    assert torch.equal(result.keep, choice.keep)
    assert whole_branches(result.plan) == ("blocks.0",)
    assert choice.kept[factors.layers.index(("blocks.0.0.1",))] == (0, 6)
    assert choice.params == sum(p.numel() for p in small.parameters()) / sum(p.numel() for p in model.parameters())
    # what a budget asks for beyond that comes from the other layers
    factors, choose = chooser(model, budget=("macs", 0.4), min_channels=1)
    assert choose.choose(factors.sizes(factors.read())).macs <= 0.4 < choice.macs
    # excluded layers stay, and one factor that is alive keeps its floor
    factors, choose = chooser(model, exclude=("blocks.0.*",))
    assert bool(choose.choose(factors.sizes(factors.read())).keep.all())
    nn.init.constant_(model.blocks[0][0][1].weight[:1], 1e-3)
    factors, choose = chooser(model)
    assert choose.choose(factors.sizes(factors.read())).kept[factors.layers.index(("blocks.0.0.1",))] == (3, 6)


def test_norms_that_have_yet_to_wake_are_given_their_time() -> None:
    model = residual("blocks.0.3", shift=False)
    factors, choose = chooser(model)
    sizes = factors.sizes(factors.read())
    assert bool(choose.choose(sizes).keep.all())
    last = choose.choose(sizes, last=True)
    assert whole_branches(choose.cut(copy.deepcopy(model), EXAMPLE, last.keep).plan) == ("blocks.0",)
    factors, choose = chooser(model, exclude=("blocks.0.0.1",))
    assert bool(choose.choose(factors.sizes(factors.read()), last=True).keep.all())


def test_what_is_excluded_or_listed_stays_in_a_branch_that_goes() -> None:
    model = residual("blocks.0.0.1", between=conv_bn(6, 6))
    factors, choose = chooser(model, exclude=("blocks.0.1.1",))
    choice = choose.choose(factors.sizes(factors.read()))
    small = copy.deepcopy(model)
    choose.cut(small, EXAMPLE, choice.keep, constants="fold")
    prune_channels(model, EXAMPLE, keep={"blocks.0.0.1": [], "blocks.0.1.1": range(6)})
    for each in (small, model):
        assert [m.out_channels for m in each.blocks[0].modules() if isinstance(m, nn.Conv2d)] == [0, 6, 8]
        train(each, torch.optim.SGD(each.parameters(), 1e-3), EXAMPLE)


def test_data_parallel_waits_for_no_gradient_of_what_is_gone() -> None:
    model = residual("blocks.0.0.1")
    prune_channels(model, EXAMPLE)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(model)
        train(parallel, torch.optim.SGD(model.parameters(), 1e-3), EXAMPLE)
        model.blocks[0][0][0].weight.requires_grad_(True)  # it would fail if one were waited for
        parallel = nn.parallel.DistributedDataParallel(model)
        with pytest.raises(RuntimeError, match="finished reduction"):
            train(parallel, torch.optim.SGD(model.parameters(), 1e-3), EXAMPLE)
    finally:
        torch.distributed.destroy_process_group()
