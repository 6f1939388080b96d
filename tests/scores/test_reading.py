"""Scores of what reads the channels, and the refit: against layers run by PyTorch, brute force and closed forms."""

from __future__ import annotations

import copy
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_prune import prune_channels
from lightning_prune.errors import CalibrationError
from lightning_prune.scores.cpot import distance_to_barycenter, quantile_functions
from lightning_prune.scores.lasso import LASSO, lasso_entries
from lightning_prune.scores.thinet import ThiNet, greedy_errors
from lightning_prune.scoring.contributions import contributions, draw_places, patches, reads_plainly
from lightning_prune.scoring.reconstruct import calls_of, reconstruct
from tests.channels.branching import residual
from tests.scores.networks import convolutions, score_of, two_layers, units_of

LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(5, 7), ()),
    "tokens": (nn.Linear(5, 7), (6,)),
    "1d": (nn.Conv1d(5, 7, 3, padding="same", dilation=2), (9,)),
    "2d": (nn.Conv2d(5, 7, 3, stride=2, padding=1, dilation=2), (9, 8)),
    "flat": (nn.Conv2d(5, 7, (3, 1), padding=(0, 2), bias=False), (6, 5)),
    "3d": (nn.Conv3d(5, 7, 2, padding=1), (5, 4, 6)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_patches_and_contributions_add_up_to_what_the_layer_gives(name: str) -> None:
    torch.manual_seed(0)
    layer: Any = copy.deepcopy(LAYERS[name][0]).double()
    x = torch.randn(3, 5, *LAYERS[name][1], dtype=torch.float64)
    y = layer(x.movedim(1, -1)).movedim(-1, 1) if isinstance(layer, nn.Linear) else layer(x)
    at = draw_places(layer, x.shape, 40, seed=1)
    assert len(at.unique()) > 1
    whole = torch.einsum("pck,ock->po", patches(layer, x, at), layer.weight.view(7, 5, -1))
    expected = y.transpose(0, 1).flatten(1).T[at] - (0 if layer.bias is None else layer.bias)
    torch.testing.assert_close(whole, expected)
    outputs = torch.randint(7, (40,), generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(contributions(layer, x, 40, seed=1).sum(1), expected[torch.arange(40), outputs])


def test_layers_that_do_not_sum_over_all_channels_are_left_out() -> None:
    wrong = [nn.Conv2d(4, 4, 1, groups=2), nn.ConvTranspose2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding_mode="circular")]
    assert not any(reads_plainly(layer) for layer in [*wrong, nn.BatchNorm2d(4)])


def grams(parts: int = 6) -> tuple[Tensor, Tensor]:
    torch.manual_seed(3)
    added = torch.randn(50, parts, dtype=torch.float64) @ torch.randn(parts, parts, dtype=torch.float64)
    return added, added.T @ added / 50


def test_greedy_errors_are_those_of_the_removal() -> None:
    added, gram = grams()
    found, gone, worst = greedy_errors(gram), [], 0.0
    for _ in range(6):
        left = [j for j in range(6) if j not in gone]
        errors = {j: float(added[:, [*gone, j]].sum(1).square().mean()) for j in left}
        best = min(errors, key=errors.__getitem__)
        gone.append(best)
        worst = max(worst, errors[best])
        assert float(found[best]) == pytest.approx(worst)
    singles = min(float(added[:, list(c)].sum(1).square().mean()) for c in combinations(range(6), 1))
    assert float(found.min()) == pytest.approx(singles)


def test_parts_that_cancel_go_together() -> None:
    added = torch.randn(50, 1, dtype=torch.float64) * torch.tensor([1.0, -1.0, 0.2], dtype=torch.float64)
    assert greedy_errors(added.T @ added / 50).argmin() == 2
    alike = greedy_errors((added.T @ added / 50)[:2, :2])
    assert alike[0] == alike[1] > 0


def test_the_lasso_path_of_parts_at_right_angles() -> None:
    """A part enters when the price falls below its own mean square."""
    level = torch.tensor([1.0, 0.5, 0.02, 0.1, 0.0], dtype=torch.float64)
    found = lasso_entries(level.diag())
    grid = torch.logspace(0, -3, 40, dtype=torch.float64)
    for value, entry in zip(level[:4], found, strict=False):
        below = grid[grid < value - 1e-12] if value < 1 else grid[1:]
        assert float(entry) == pytest.approx(float(below[0]), abs=1e-4)
    assert found[4] == 0


def test_the_lasso_keeps_one_of_two_that_are_alike() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(2, 400, dtype=torch.float64)
    added = torch.stack([a, 0.3 * a, b], dim=1)
    found = lasso_entries(added.T @ added / 400)
    assert found.argmin() == 1
    assert found[0] > 10 * found[1]


@pytest.mark.parametrize("score", [ThiNet(places=4000), LASSO(places=4000)])
def test_what_reads_nothing_goes_first(score: Any) -> None:
    network = two_layers()
    with torch.no_grad():
        network[1].weight[:, 2] = 0
        network[1].weight[:, 4] *= 1e-3
    x = torch.randn(50, 4, dtype=torch.float64)
    found = score_of(units_of(network, x), score, [x])
    assert found.argsort()[:2].tolist() == [2, 4]


def test_flattened_channels_are_one_part() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(12, 2)).double()
    x = torch.randn(30, 1, 4, 4, dtype=torch.float64)
    units = units_of(network, x[:2])
    found = score_of(units, ThiNet(places=20000), [x])
    parts = (network[0](x).flatten(1)[:, None] * network[2].weight).view(30, 2, 3, 4).sum(3)
    whole = parts.sum(2).square().mean()
    alone = (parts.square().mean((0, 1)) / whole).detach()
    assert float(found.min()) == pytest.approx(float(alone.min()), rel=0.05)
    assert found.argmin() == alone.argmin()


def test_distance_to_the_barycenter() -> None:
    """Three normal distributions: Wasserstein-2 in closed form, by means and deviations."""
    even = torch.distributions.Normal(0.0, 1.0).icdf((torch.arange(4000, dtype=torch.float64) + 0.5) / 4000)
    moments = torch.tensor([[0.0, 1.0], [1.0, 2.0], [5.0, 3.0]], dtype=torch.float64)
    x = (moments[:, :1] + moments[:, 1:] * even).T[torch.randperm(4000)]
    found = distance_to_barycenter(quantile_functions(x, 1000))
    expected = (moments - moments.mean(0)).square().sum(1).sqrt()
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0)


def redundant() -> tuple[nn.Sequential, Tensor]:
    """A network whose hidden units 4 and 5 are combinations of the others."""
    network = two_layers()
    with torch.no_grad():
        for row, source in ((4, 0), (5, 1)):
            network[0].weight[row], network[0].bias[row] = -2 * network[0].weight[source], 0.5
    return network, torch.randn(64, 4, dtype=torch.float64)


@pytest.mark.parametrize(("form", "exact"), [("weights", True), ("scale", False), (None, False)])
def test_a_refit_restores_what_the_rest_can_tell(form: Any, exact: bool) -> None:
    network, x = redundant()
    before = network(x).detach()
    scores = {"0": torch.tensor([1.0, 1, 1, 1, 0, 0])}
    dense = copy.deepcopy(network)
    result = prune_channels(network, x[:2], scores=scores, channels=0.67, batches=[x], reconstruct=form)
    assert network[1].weight.shape == (3, 4)
    error = (network(x) - before).square().mean()
    if exact:
        assert float(error.detach()) < 1e-4 * float(before.var())
        assert any("refitted 1 layers" in note for note in result.notes)
    else:
        assert float(error.detach()) > 1e-2 * float(before.var())
    assert torch.equal(network[0].weight, dense[0].weight[:4])


def test_a_factor_a_channel_is_better_than_none() -> None:
    found = {}
    for form in (None, "scale", "weights"):
        network = convolutions()
        x = torch.randn(32, 3, 9, 9)
        before = network(x).detach()
        options: Any = {"score": ThiNet(), "scope": "layer", "channels": 0.6, "batches": [x], "reconstruct": form}
        prune_channels(network, x[:2], **options)
        found[form] = float((network(x) - before).detach().square().mean())
    assert found["weights"] < found["scale"] < found[None]


def test_later_layers_see_what_was_refitted_before() -> None:
    network = residual().eval()
    x = torch.randn(16, *network.state_dict()["stem.0.weight"].shape[1:2], 8, 8)
    dense = copy.deepcopy(network)
    plan = prune_channels(network, x[:2], score="l2", scope="layer", channels=0.5).plan
    refits = reconstruct(network, dense, plan, calls_of(network, network, [x, x]))
    assert len(refits) > 2
    assert all(refit.after <= refit.before + 1e-9 for refit in refits)
    assert not any(m.training for m in network.modules())


def test_what_cannot_be_refitted_is_said() -> None:
    network, x = redundant()
    with pytest.raises(CalibrationError, match="needs calibration batches and got none"):
        prune_channels(network, x[:2], score="l2", channels=0.5, reconstruct="weights")
    assert network[1].weight.shape == (3, 6)
    with pytest.raises(ValueError, match="reconstruct='all' must be one of"):
        prune_channels(network, x[:2], score="l2", channels=0.5, reconstruct="all")  # type: ignore[arg-type]
