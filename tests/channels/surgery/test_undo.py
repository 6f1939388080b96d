"""What a compact module remembers, and the way back: `plan_of`, `PruningPlan.undo`."""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.layers import BlurPool2d
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from lightning_prune.channels import PlanError, PruningPlan, prune_channels
from lightning_prune.plan.record import plan_of, plans_of
from tests.channels.models import Attention, Branches, Chain, Tied, conv_bn, random_scores, randomise, silenced

EXAMPLE = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


class Blurred(nn.Module):
    """A buffer that counts channels and is in no state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blur, self.head = conv_bn(3, 8), BlurPool2d(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blur(self.stem(x)).mean((2, 3)))


MODELS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "branches": (Branches, "eager"),
    "chain": (Chain, "eager"),
    "attention": (Attention, "eager"),
    "tied weights": (Tied, "eager"),
    "buffers that are not saved": (Blurred, "eager"),
    "rewritten graph": (Branches, "graph"),
}


def pruned(make: Callable[[], nn.Module] = Branches, form: str = "auto") -> tuple[nn.Module, nn.Module, PruningPlan]:
    """(dense, compact, plan)"""
    torch.manual_seed(0)
    dense = randomise(make())
    small = copy.deepcopy(dense)
    return dense, small, prune_channels(small, EXAMPLE, scores=random_scores(small), ratio=0.3, form=form).plan


def plain(model: nn.Module) -> dict[str, Any]:
    """Every public plain attribute of every module."""
    return {
        f"{path}.{name}": value
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if not name.startswith("_")
    }


@pytest.mark.parametrize("name", MODELS)
def test_undone_is_masked_and_takes_the_dense_weights_back(name: str) -> None:
    make, form = MODELS[name]
    dense, small, plan = pruned(make, form)
    held = [*small.parameters(), *small.buffers()]
    assert plan_of(small) == plan
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in dense.parameters())
    masked = silenced(copy.deepcopy(dense), plan)
    masked.load_state_dict(
        {k: v for k, v in masked.state_dict().items() if not k.endswith("running_var")}
        | {k: torch.where(v == 0, 1.0, v) for k, v in masked.state_dict().items() if k.endswith("running_var")}
    )
    again = copy.deepcopy(small)
    assert plan.undo(again) is again
    assert plan_of(again) is None
    assert type(again) is make
    assert plain(again) == plain(dense)
    assert all(torch.equal(v, masked.state_dict()[k]) for k, v in again.state_dict().items())
    assert torch.equal(again(EXAMPLE), masked(EXAMPLE))
    plan.undo(small)
    small.load_state_dict(dense.state_dict())
    assert all(a is b for a, b in zip(held, [*small.parameters(), *small.buffers()], strict=True))
    assert torch.equal(small(EXAMPLE), dense(EXAMPLE))
    assert torch.equal(plan.apply(small)(EXAMPLE), plan.apply(copy.deepcopy(dense))(EXAMPLE))


def test_two_prunings_are_one_plan_and_one_way_back() -> None:
    dense, small, first = pruned()
    second = prune_channels(small, EXAMPLE, scores=random_scores(small, 7), ratio=0.3).plan
    both = plan_of(small)
    assert both == first.then(second)
    for wrong in (first, second):
        with pytest.raises(PlanError, match=r"more than this one; undo all of it with lightning_prune.plan_of"):
            wrong.undo(small)
    both.undo(small).load_state_dict(dense.state_dict())
    assert torch.equal(small(EXAMPLE), dense(EXAMPLE))


def test_a_graph_is_pruned_again_and_undone() -> None:
    dense, small, _ = pruned(form="graph")
    prune_channels(small, EXAMPLE, scores=random_scores(small, 7), ratio=0.3, form="graph")
    both = plan_of(small)
    fresh = PruningPlan.from_json(both.to_json()).apply(copy.deepcopy(dense))
    assert torch.equal(fresh(EXAMPLE), small(EXAMPLE))
    both.undo(small).load_state_dict(dense.state_dict())
    assert type(small) is Branches
    assert torch.equal(small(EXAMPLE), dense(EXAMPLE))


@pytest.mark.parametrize("form", ["eager", "graph"])
def test_copies_and_pickles_remember(form: str) -> None:
    _, small, plan = pruned(form=form)
    keys = set(small.state_dict())
    assert keys == set(Branches().state_dict())
    copied = copy.deepcopy(small)
    for other in (copied, pickle.loads(pickle.dumps(small)), pickle.loads(pickle.dumps(copied))):
        assert plan_of(other) == plan
        assert type(other) is type(small)
        assert torch.equal(other(EXAMPLE), small(EXAMPLE))
        assert torch.equal(other.train()(EXAMPLE), copy.deepcopy(small).train()(EXAMPLE))
        plan.undo(other)
        assert plan_of(small) == plan


def test_a_module_that_holds_the_model_knows_its_plan() -> None:
    dense, small, plan = pruned()
    outer = nn.ModuleDict({"loss": nn.BatchNorm2d(3), "net": copy.deepcopy(dense)})
    average = AveragedModel(outer["net"])
    plan.apply(outer, averaged=[average])
    assert plans_of(outer) == {"net": plan}
    assert plan_of(average) == plan
    assert plan_of(outer["loss"]) is None
    for module in (outer, average):
        assert plan_of(module).undo(module) is module
        assert plan_of(module) is None
    outer["net"].load_state_dict(dense.state_dict())
    average.update_parameters(outer["net"])
    assert torch.equal(average(EXAMPLE), dense(EXAMPLE))
    plan.apply(outer)
    assert torch.equal(outer["net"](EXAMPLE), small(EXAMPLE))


def test_gradients_and_memory_formats_are_undone_too() -> None:
    dense = randomise(Chain()).to(memory_format=torch.channels_last)
    plan = prune_channels(dense, EXAMPLE, keep={"features.1": [0, 2, 3]}).plan
    dense(EXAMPLE).square().sum().backward()
    weight = dense.features[0].weight
    gradient = weight.grad.clone()
    plan.undo(dense)
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert weight.grad.shape == weight.shape == (8, 3, 3, 3)
    assert torch.equal(weight.grad[[0, 2, 3]], gradient)
    assert not weight.grad[[1, 4, 5, 6, 7]].any()


def test_kernels_that_are_contiguous_in_either_order_stay_channels_last() -> None:
    """Depthwise kernels, those of 1×1 and of one colour: strides say in which order the network computes."""
    net = nn.Sequential(conv_bn(1, 8), nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), nn.Conv2d(8, 5, 1))
    dense, x = randomise(net).to(memory_format=torch.channels_last), EXAMPLE[:, :1]
    kernels = {n: p for n, p in dense.named_parameters() if p.ndim == 4}
    strides = {n: p.stride() for n, p in kernels.items()}
    assert all(p.is_contiguous() for p in kernels.values())
    plan = prune_channels(dense, x, keep={"2": [0, 2, 3]}).plan
    assert not dense(x).is_contiguous()
    for p in kernels.values():
        assert p.stride() == torch.empty(p.shape, memory_format=torch.channels_last).stride()
    plan.undo(dense)
    assert {n: p.stride() for n, p in kernels.items()} == strides


def test_what_the_plan_did_not_leave_is_not_undone() -> None:
    dense, small, plan = pruned()
    other = copy.deepcopy(small)
    other.half = 99
    wrong = [(dense, r"leaves stem\.0\.weight of shape"), (Chain(), "does not have"), (other, r"half = .*found 99")]
    for model, message in wrong:
        before = {k: v.clone() for k, v in model.state_dict().items()}
        with pytest.raises(PlanError, match=message):
            plan.undo(model)
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_replaced_layer_ends_the_record(caplog: pytest.LogCaptureFixture) -> None:
    _, small, _ = pruned(Chain)
    width = small.features[3].in_channels + 4
    small.features[0], small.features[1] = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width)
    small.features[3] = nn.Conv2d(width, small.features[3].out_channels, 3, padding=1)
    with caplog.at_level(logging.WARNING):
        prune_channels(small.eval(), EXAMPLE, scores=random_scores(small, 3), ratio=0.3)
    assert "no longer knows the way back" in caplog.text
    assert plan_of(small) is None
