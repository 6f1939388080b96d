"""Searched widths: one cost for all, masked is sliced, nothing of the network changes, and bad input is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import lightning_prune.zoo.models  # noqa: F401  (registers the network)
from lightning_prune import PlanError, ScorePruningCallback, prune_channels
from lightning_prune.channels.graph.graph import ChannelGraph
from lightning_prune.channels.select.selector import Selector
from lightning_prune.channels.select.units import ChannelUnits
from lightning_prune.scores import find_score
from lightning_prune.scoring.scope import importance
from lightning_prune.search import ShiftedScore, accuracy_on, search_widths
from lightning_prune.search.amc import layer_features, layer_macs
from lightning_prune.search.proxy import Proxy
from lightning_prune.support.batchnorm import recalibrate
from lightning_prune.support.macs import count_macs
from tests.toy import Toy, loaders, network, trainer

IMAGES = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def trained() -> nn.Module:
    """A network with norms as training leaves them: no statistic or shift at its start."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model("resnet20_cifar", num_classes=4, in_chans=1, width=4)
        for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
            for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
    return model.eval()


@pytest.fixture(scope="module")
def proxy() -> Proxy:
    model = trained()
    units = ChannelUnits.of(model, ChannelGraph.trace(model, IMAGES[:2]))
    score = find_score("l1")
    selector = Selector(units, rule=None, budget=None, delta=0.0, min_channels=1, divisor=1, remove_branches=False)
    quantile = importance(score, units, score.of_weights(units), "layer")
    return Proxy(units, quantile, selector, ("macs", 0.5), lambda network: 0.0)


def shifts_of(proxy: Proxy, seed: int) -> Tensor:
    return torch.rand(len(proxy.units.layers), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def as_score(proxy: Proxy, shifts: Tensor) -> ShiftedScore:
    return ShiftedScore("l1", {names[0]: x for names, x in zip(proxy.units.layers, shifts.tolist(), strict=True)})


@pytest.mark.parametrize("fresh", [False, True], ids=["statistics stay", "fresh statistics"])
def test_a_candidate_is_judged_as_the_network_that_it_leaves(proxy: Proxy, fresh: bool) -> None:
    shifts = shifts_of(proxy, 0)
    compact = copy.deepcopy(proxy.units.network)
    pruned = prune_channels(compact, IMAGES[:2], score=as_score(proxy, shifts), macs=0.5)
    selection = proxy.select(shifts)
    assert torch.equal(pruned.keep, selection.keep)
    if fresh:
        recalibrate(compact, [IMAGES])
    seen = []
    judge = Proxy(
        proxy.units, proxy.quantile, proxy.selector, proxy.target,
        lambda network: seen.append(network(IMAGES)) or 1.0, [IMAGES] if fresh else [],
    )  # fmt: skip
    assert judge.value(selection.keep) == 1.0
    with torch.no_grad():
        torch.testing.assert_close(seen[0], compact(IMAGES), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(seen[0], proxy.units.network(IMAGES), rtol=1e-2)


def test_every_candidate_costs_the_same(proxy: Proxy) -> None:
    found = [proxy.select(shifts_of(proxy, seed)) for seed in range(5)]
    assert all(0.47 < selection.macs <= 0.5 for selection in found)
    assert len({selection.kept for selection in found}) == 5
    moved = proxy.select(shifts_of(proxy, 0) + 0.3)  # alike for all: one threshold takes it up
    assert torch.equal(moved.keep, found[0].keep)


def test_features_tell_layers_apart(proxy: Proxy) -> None:
    units, cost = proxy.units, proxy.selector.cost
    features, macs = layer_features(units, cost), layer_macs(units, cost)
    assert features.shape == (len(units.layers), 7)
    assert float(features.min()) == 0
    assert float(features.max()) == 1
    assert len(features.unique(dim=0)) == len(units.layers)
    assert float(macs.sum()) == pytest.approx(cost.macs() - cost.macs_by_layer()["head.fc"])  # all but the output


def distance_to(model: nn.Module) -> Any:
    with torch.no_grad():
        dense = copy.deepcopy(model)(IMAGES)
    return lambda network: -float((network(IMAGES) - dense).square().mean())


@pytest.mark.parametrize("method", ["evolution", "amc", "random"])
def test_a_search_finds_what_is_better_than_uniform_and_leaves_the_network_alone(method: Any) -> None:
    model = network().train()
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    options: dict[str, Any] = {"macs": 0.5, "method": method, "budget": 12, "recalibrate_on": [IMAGES]}
    found = search_widths(model, IMAGES[:2], distance_to(model.eval()), **options)
    model.train()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert len(found.trail) == 12
    assert found.best.value > found.trail[0].value
    compact = copy.deepcopy(model)
    found.plan.apply(compact)
    assert count_macs(compact, IMAGES[:1]) <= 0.5 * count_macs(model, IMAGES[:1])


def test_a_search_begins_with_uniform_widths_and_can_be_repeated() -> None:
    model = network().eval()
    options: dict[str, Any] = {"macs": 0.5, "method": "amc", "budget": 8}
    found, again = (search_widths(model, IMAGES[:2], distance_to(model), **options) for _ in range(2))
    assert (again.trail, again.plan.cuts, again.score.shifts) == (found.trail, found.plan.cuts, found.score.shifts)
    uniform = prune_channels(model, IMAGES[:2], score="l1", scope="layer", macs=0.5, min_channels=0.2)
    assert found.trail[0].kept == uniform.selection.kept


def test_what_was_found_is_a_score_for_the_callback(tmp_path: Any) -> None:
    module = Toy()
    found = search_widths(module.net.eval(), IMAGES[:2], distance_to(module.net), macs=0.5, budget=8)
    module.train()
    callback = ScorePruningCallback(found.score, target_macs=0.5, warmup=0, min_keep=0.2)
    trainer(tmp_path, [callback], max_epochs=1).fit(module, **loaders())
    assert callback.pruned is not None
    assert callback.pruned.plan.cuts == found.plan.cuts


def test_bad_input_is_refused() -> None:
    model = network().eval()
    with pytest.raises(ValueError, match=r"method='evolutoin' is none of .*evolution"):
        search_widths(model, IMAGES[:2], distance_to(model), method="evolutoin")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="budget=0 must be a positive number of candidates"):
        search_widths(model, IMAGES[:2], distance_to(model), budget=0)
    with pytest.raises(PlanError, match=r"macs=1\.5: expected the share"):
        search_widths(model, IMAGES[:2], distance_to(model), macs=1.5)
    with pytest.raises(ValueError, match="evaluate gave nan; expected a finite number"):
        search_widths(model, IMAGES[:2], lambda network: float("nan"))
    with pytest.raises(PlanError, match="no channel of Linear may be removed"):
        search_widths(nn.Linear(4, 2), torch.zeros(2, 4), lambda network: 0.0)
    with pytest.raises(PlanError, match="shifts are of other layers than Sequential has"):
        prune_channels(model, IMAGES[:2], score=ShiftedScore("l1", {"other": 0.5}), macs=0.5)
    with pytest.raises(ValueError, match="accuracy_on got no batch"):
        accuracy_on([])
    with pytest.raises(ValueError, match="needs batches of"):
        accuracy_on([IMAGES])(model)


def test_accuracy_is_over_all_samples() -> None:
    answers = torch.eye(3)
    batches = [(answers[[0, 1]], torch.tensor([0, 1])), (answers[[2]], torch.tensor([0]))]
    assert accuracy_on(iter(batches))(nn.Identity()) == pytest.approx(2 / 3)
