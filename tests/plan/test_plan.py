"""`PruningPlan`: JSON, fresh models, composition, optimizer state, averaged copies, and plans that do not fit."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from lightning_prune import plan_of
from lightning_prune.channels import PlanError, PruningPlan, prune_channels
from lightning_prune.plan.cut import Change, Cut
from tests.channels.models import Branches, Chain, random_scores, randomise

EXAMPLE = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def pruned(seed: int = 0) -> tuple[nn.Module, nn.Module, PruningPlan]:
    """(dense, compact, plan)"""
    dense = randomise(Branches(), seed)
    small = copy.deepcopy(dense)
    result = prune_channels(small, EXAMPLE, scores=random_scores(small, seed), ratio=0.3)
    return dense, small, result.plan


def test_json_round_trip(tmp_path: Path) -> None:
    _, _, plan = pruned()
    assert PruningPlan.from_json(plan.to_json()) == plan
    plan.to_json(tmp_path / "plan.json")
    assert PruningPlan.from_json(tmp_path / "plan.json") == plan
    assert PruningPlan.from_json(str(tmp_path / "plan.json")) == plan
    assert plan.attributes["" if "" in plan.attributes else "left.0"]


def test_a_fresh_model_becomes_the_compact_one() -> None:
    _, small, plan = pruned()
    fresh = PruningPlan.from_json(plan.to_json()).apply(randomise(Branches(), 5))
    assert {k: v.shape for k, v in fresh.state_dict().items()} == {k: v.shape for k, v in small.state_dict().items()}
    fresh.load_state_dict(small.state_dict())
    torch.testing.assert_close(fresh(EXAMPLE), small(EXAMPLE), rtol=0, atol=0)


def test_plans_compose() -> None:
    dense, once, first = pruned()
    twice = copy.deepcopy(once)
    second = prune_channels(twice, EXAMPLE, scores=random_scores(twice, 7), ratio=0.3).plan
    both = PruningPlan.from_json(first.then(second).to_json()).apply(copy.deepcopy(dense))
    for name, value in twice.state_dict().items():
        assert torch.equal(both.state_dict()[name], value), name
    torch.testing.assert_close(both(EXAMPLE), twice(EXAMPLE), rtol=0, atol=0)
    with pytest.raises(PlanError, match="do not follow each other"):
        second.then(second)


def test_a_graph_is_rewritten_anew_in_its_stages() -> None:
    """The one group that is left of a grouped convolution loses channels, which the dense model ties."""
    dense = randomise(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 3, 1)), 0)
    small = copy.deepcopy(dense)
    prune_channels(small, EXAMPLE, keep={"0": [0, 1, 2, 3]}, groups="whole", form="eager")
    prune_channels(small, EXAMPLE, keep={"0": [1, 3], "1": [0, 2, 3]}, form="graph")
    plan = plan_of(small)
    assert plan is not None
    assert [stage.form for stage in plan.stages] == ["eager", "graph"]
    inside = PruningPlan.from_json(plan.above("model").to_json()).below("model")
    assert inside == plan
    anew = inside.apply(copy.deepcopy(dense))
    torch.testing.assert_close(anew(EXAMPLE), small(EXAMPLE), rtol=0, atol=0)
    with pytest.raises(PlanError, match=r"frozen|another way"):
        replace(plan, stages=()).apply(copy.deepcopy(dense))
    with pytest.raises(PlanError, match="stages of the plan, one after the other"):
        PruningPlan.from_json(replace(plan, stages=plan.stages[:1]).to_json())


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_optimizer_state_follows_and_every_parameter_moves(kind: str) -> None:
    torch.manual_seed(0)
    model = randomise(Branches()).train()
    make = {"sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), "adamw": lambda p: torch.optim.AdamW(p, 0.01)}
    optimizer = make[kind](model.parameters())
    before = list(model.parameters())
    model(EXAMPLE).square().sum().backward()
    optimizer.step()
    slot = {"sgd": "momentum_buffer", "adamw": "exp_avg_sq"}[kind]
    dense_state = optimizer.state[model.left[0].weight][slot].clone()
    result = prune_channels(model, EXAMPLE, scores=random_scores(model), ratio=0.3, optimizers=[optimizer])
    assert all(a is b for a, b in zip(before, model.parameters(), strict=True))
    kept = result.plan.cuts["left.0.weight"].kept
    expected = dense_state[list(kept[0])][:, list(kept[1])]
    assert torch.equal(optimizer.state[model.left[0].weight][slot], expected)
    start = [p.detach().clone() for p in model.parameters()]
    optimizer.zero_grad()
    model.train()(EXAMPLE).square().sum().backward()
    optimizer.step()
    for old, (name, p) in zip(start, model.named_parameters(), strict=True):
        assert p.grad is not None, name
        assert p.grad.shape == p.shape
        assert not torch.equal(old, p), name


def test_gradients_that_wait_are_sliced() -> None:
    model = randomise(Chain())
    model(EXAMPLE).square().sum().backward()
    gradient = model.features[0].weight.grad.clone()
    prune_channels(model, EXAMPLE, keep={"features.1": [0, 2, 3]})
    assert torch.equal(model.features[0].weight.grad, gradient[[0, 2, 3]])


def test_averaged_copies_get_the_same_plan() -> None:
    model = randomise(Branches())
    average = AveragedModel(model)
    average.update_parameters(randomise(Branches(), 3))
    prune_channels(model, EXAMPLE, scores=random_scores(model), ratio=0.3, averaged=[average])
    assert [p.shape for p in average.module.parameters()] == [p.shape for p in model.parameters()]
    average.update_parameters(model)
    average(EXAMPLE)


def test_a_plan_finds_the_model_inside_another_module() -> None:
    dense, small, plan = pruned()
    outer = nn.ModuleDict({"net": copy.deepcopy(dense), "loss": nn.BatchNorm2d(3)})
    plan.apply(outer)
    torch.testing.assert_close(outer["net"](EXAMPLE), small(EXAMPLE), rtol=0, atol=0)


def test_a_plan_for_another_model_is_refused() -> None:
    _, small, plan = pruned()
    for other, message in ((Chain(), "does not have"), (Branches(16), "expects"), (small, "applied already")):
        before = {k: v.clone() for k, v in other.state_dict().items()}
        with pytest.raises(PlanError, match=message):
            plan.apply(other)
        assert all(torch.equal(v, before[k]) for k, v in other.state_dict().items())


@pytest.mark.parametrize(
    ("kept", "message"),
    [((), "empty"), ((0, 99), "numbers from 0 to 7"), ((2, 1), "increasing"), ((-1, 2), "numbers from 0")],
)
def test_a_broken_plan_is_refused(kept: tuple[int, ...], message: str) -> None:
    model = Chain()
    plan = PruningPlan({"features.0.weight": Cut((8, 3, 3, 3), {0: kept})})
    with pytest.raises(PlanError, match=message):
        plan.apply(model)
    assert model.features[0].weight.shape == (8, 3, 3, 3)


def test_an_attribute_that_differs_is_refused() -> None:
    plan = PruningPlan({"features.0.bias": Cut((8,), {0: (0, 1)})}, {"features.0": {"out_channels": Change(9, 2)}})
    with pytest.raises(PlanError, match=r"features\.0\.out_channels = 9, found 8"):
        plan.apply(Chain())


@pytest.mark.parametrize("text", ["{}", "{", "[]", "no such file", json.dumps({"format": "x", "version": 1})])
def test_what_is_not_a_plan_is_refused(text: str) -> None:
    with pytest.raises(PlanError):
        PruningPlan.from_json(text)
