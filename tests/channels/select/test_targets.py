"""Targets are met after everything that the network's code asks for, or it is said by how much not."""

from __future__ import annotations

import copy
import logging
import math

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.swin_transformer import SwinTransformer

from lightning_prune.channels import ChannelGraph, PlanError, SurgeryError, prune_channels
from lightning_prune.channels.remove import remove_channels
from lightning_prune.channels.select.selector import Selector
from lightning_prune.channels.select.units import ChannelUnits
from lightning_prune.channels.verify import find_form
from tests.channels.branching import residual
from tests.channels.models import conv_bn, random_scores, randomise

EXAMPLE = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Flat(nn.Module):
    """Flattens to a width that stands in its code as a number, so its last convolution cannot shrink in it."""

    def __init__(self, first: int = 64, last: int = 64) -> None:
        super().__init__()
        self.first, self.last = conv_bn(3, first), conv_bn(first, last)
        self.pool, self.head = nn.AdaptiveAvgPool2d(4), nn.Linear(last * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.last(self.first(x))).view(-1, 64 * 16))


def flat(first: int = 64) -> tuple[nn.Module, dict[str, Tensor]]:
    model = randomise(Flat(first))
    return model, random_scores(model)


def test_the_target_is_met_with_the_widths_that_the_code_needs() -> None:
    model, scores = flat()
    result = prune_channels(model, EXAMPLE, scores, macs=0.5)
    assert result.plan.form == "eager"
    assert model.last[0].out_channels == 64
    assert 0.48 < result.macs[1] / result.macs[0] <= 0.5
    assert result.selection.macs == result.macs[1] / result.macs[0]


def test_the_rewritten_graph_is_taken_where_the_models_own_code_misses_the_target() -> None:
    model, scores = flat(first=8)  # at 8 channels kept in front, the last convolution has most of the cost
    before = copy.deepcopy(model)
    with pytest.raises(PlanError, match=r"own code .* ties that this code needs, target_macs=0.4 cannot be met: 0\.5"):
        prune_channels(model, EXAMPLE, scores, macs=0.4, min_channels=0.5, form="eager")
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), model.parameters(), strict=True))
    result = prune_channels(model, EXAMPLE, scores, macs=0.4, min_channels=0.5)
    assert result.plan.form == "graph"
    assert 0.38 < result.macs[1] / result.macs[0] <= 0.4


def test_a_target_that_no_form_meets_is_an_error_or_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(find_form, "build", lambda *a, **k: (_ for _ in ()).throw(RuntimeError("no graph")))
    model, scores = flat(first=8)
    with pytest.raises(PlanError, match=r"target_macs=0.4 cannot be met.*does not run: RuntimeError: no graph"):
        prune_channels(model, EXAMPLE, scores, macs=0.4, min_channels=0.5)
    units = ChannelUnits.of(model, ChannelGraph.trace(model, EXAMPLE))
    selector = Selector(units, rule=None, budget=("macs", 0.4), delta=0.0, min_channels=0.5, divisor=1)
    selection = selector.select(units.aggregate(scores))
    with caplog.at_level(logging.WARNING):
        result = remove_channels(model, EXAMPLE, selector, selection)
    missed = result.selection.missed()
    assert "over the target of 0.4" in missed
    assert "ties that the network's own code needs" in missed
    assert missed in result.notes
    assert missed in caplog.text
    assert any("fails at" in note for note in result.notes)
    assert result.macs[1] / result.macs[0] == result.selection.macs > 0.404


def test_swin_meets_its_target() -> None:
    torch.manual_seed(0)
    model = SwinTransformer([4, 4], 24, [2, 2], [2, 4], [4, 4], num_classes=10).eval()
    x = torch.randn(1, 3, 32, 32)
    units = ChannelUnits.of(model, graph := ChannelGraph.trace(model, x))
    scores = {name: p.detach().flatten(1).norm(dim=1) for name, p in units.weights().items()}
    result = prune_channels(model, x, scores, macs=0.5, graph=graph)
    assert 0.495 <= result.macs[1] / result.macs[0] <= 0.5


def test_a_target_that_branches_undercut_says_so() -> None:
    model = residual("blocks.0.0.1", "blocks.1.0.1")
    result = prune_channels(model, EXAMPLE, random_scores(model), macs=0.9, remove_branches=True)
    assert "under the target of 0.9: the branches that are removed leave" in result.selection.missed()


def test_parameters_and_channels_are_targets_too() -> None:
    for target in ("params", "channels"):
        model = residual()
        result = prune_channels(model, EXAMPLE, random_scores(model), **{target: 0.7})
        assert 0.6 < result.selection.numbers()[target] <= 0.7
    assert result.params[1] == sum(p.numel() for p in model.parameters())
    with pytest.raises(PlanError, match=r"params=1\.5: expected the share that may stay"):
        prune_channels(residual(), EXAMPLE, random_scores(residual()), params=1.5)


def test_selecting_changes_nothing_on_the_selector() -> None:
    units = ChannelUnits.of(model := residual(), ChannelGraph.trace(model, EXAMPLE))
    selector = Selector(units, rule=None, budget=("macs", 0.8), delta=0.0, min_channels=1, divisor=1)
    score = units.aggregate(random_scores(model))
    first = selector.select(score)
    assert selector.select(score, budget=("macs", 0.4)).macs <= 0.4
    pair = (units.graph.axes["blocks.0.0.1.weight"][0], units.graph.axes["blocks.1.0.1.weight"][0])
    tied = selector.select(score, extra_ties=[pair])
    assert len({int(tied.keep[ids].sum()) for ids in pair}) == 1
    assert tied.macs <= 0.8
    assert torch.equal(selector.select(score).keep, first.keep)


def test_scores_that_are_no_scores_are_refused() -> None:
    units = ChannelUnits.of(model := residual(), ChannelGraph.trace(model, EXAMPLE))
    options = {"budget": ("macs", 0.8), "delta": 0.0, "min_channels": 1, "divisor": 1}
    with pytest.raises(PlanError, match=r"1 of \d+ scores are NaN"):
        Selector(units, rule=None, **options).select(torch.ones(units.size).index_fill(0, torch.tensor(3), math.nan))
    with pytest.raises(PlanError, match=r"rule='css' needs scores from 0 on, found -1; use rule=None"):
        Selector(units, rule="css", **options).select(-torch.ones(units.size))
    with pytest.raises(PlanError, match=rf"score has shape \(3,\), expected \({units.size},\)"):
        Selector(units, rule=None, **options).select(torch.ones(3))


def boom(kind: type[Exception]) -> None:
    raise kind("not the model")


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, MemoryError])
def test_a_lack_of_memory_is_not_the_models_fault(kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find_form, "check_plan", lambda *a, **k: boom(kind))
    model = residual()
    with pytest.raises(kind):
        prune_channels(model, EXAMPLE, random_scores(model), ratio=0.3)


def test_our_own_fault_is_not_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_prune.channels.verify.compare.distance", None)
    model = residual()
    with pytest.raises(TypeError, match="NoneType"):
        prune_channels(model, EXAMPLE, random_scores(model), ratio=0.3)


def test_what_torch_raised_is_the_cause() -> None:
    model, scores = flat()
    for tensor in scores.values():
        tensor.copy_(torch.linspace(0, 1, len(tensor)))
    with pytest.raises((PlanError, SurgeryError), match=r"own code fails at .*RuntimeError") as found:
        prune_channels(model, EXAMPLE, scores, macs=0.2, min_channels=0.4, form="eager")
    chain = [found.value]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    assert type(chain[-1]) is RuntimeError
