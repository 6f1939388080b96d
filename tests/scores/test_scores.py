"""Scores of filters against loops in float64."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_prune.scores.cop import cop
from lightning_prune.scores.fpgm import fpgm
from lightning_prune.scores.hrank import HRank, map_rank
from lightning_prune.scores.norm import filter_norm
from lightning_prune.scores.taylor import Taylor
from lightning_prune.scores.taylor_activation import TaylorActivation
from lightning_prune.scores.taylor_weight import TaylorWeight
from lightning_prune.scores.variance import moments

SHAPES = [(1, 4), (7, 5), (6, 3, 3, 3), (5, 1, 3), (4, 2, 1, 2, 3)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_fpgm_is_the_sum_of_distances_to_all_other_filters(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    filters = weight.double().flatten(1).tolist()
    expected = [sum(math.dist(a, b) for b in filters) for a in filters]
    found = fpgm(weight)
    torch.testing.assert_close(found.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=0)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_the_filter_that_others_can_replace_scores_least_whatever_its_norm() -> None:
    corners = torch.tensor([[9.0, 9.0], [9.0, 11.0], [11.0, 9.0], [11.0, 11.0], [10.0, 10.0], [0.0, 0.0]])
    assert int(fpgm(corners).argmin()) == 4  # the geometric median; the norm would take the last one
    assert int(filter_norm(corners).argmin()) == 5
    near = torch.tensor([[1000.0, 1.0], [1000.0, 1.0 + 1e-3], [1000.0, 1.0 + 2e-3]])
    torch.testing.assert_close(fpgm(near)[1], (near[2, 1] - near[0, 1]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("p", [1, 2, 0.5])
def test_norms_of_filters(shape: tuple[int, ...], p: float) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = [sum(abs(v) ** p for v in row) ** (1 / p) for row in weight.flatten(1).tolist()]
    torch.testing.assert_close(filter_norm(weight, p), torch.tensor(expected, dtype=torch.float64))


def test_bad_input() -> None:
    for score in (fpgm, filter_norm):
        with pytest.raises(ValueError, match=r"shape \(3,\) holds no filters: expected \[C, \.\.\.\]"):
            score(torch.ones(3))
    with pytest.raises(ValueError, match="p=0 must be positive"):
        filter_norm(torch.ones(3, 2), 0)


@pytest.mark.parametrize("ranks", [(0, 1, 2, 5)])
def test_hrank_counts_the_rank_of_maps(ranks: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(3, 6, r, generator=generator) @ torch.randn(3, r, 5, generator=generator) for r in ranks]
    x = torch.stack(maps, 1)
    assert map_rank(x).tolist() == list(ranks)
    assert HRank(samples=2).of_layer(x).tolist() == [r / 5 for r in ranks]
    x[0, 3] = 0  # one of three samples
    assert map_rank(x)[3] == pytest.approx(5 * 2 / 3)
    assert HRank().of_layer(x[..., 0]) is None  # tokens
    assert HRank().of_layer(x[..., :1]) is None


def test_cop_finds_duplicated_channels() -> None:
    weight = torch.randn(40, 6, 3, 3, generator=torch.Generator().manual_seed(0))
    weight[:, 4] = -2 * weight[:, 1] + 3  # a scale and an offset over the outputs change no correlation
    score = cop(weight, top=1)
    assert sorted(score.argsort()[:2].tolist()) == [1, 4]
    torch.testing.assert_close(score[[1, 4]], torch.zeros(2), rtol=0, atol=1e-6)
    assert float(score[[0, 2, 3, 5]].min()) > 0.3
    assert torch.equal(cop(weight[:, :1]), torch.ones(1))
    assert torch.equal(cop(torch.ones(4, 3)), torch.ones(3))  # constant columns correlate with nothing


@pytest.mark.parametrize("shape", [(30, 5), (30, 5, 2), (30, 5, 2, 3)])
def test_cop_is_pearsons_correlation(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kernels = weight.reshape(30, 5, -1)
    each = [torch.corrcoef(kernels[:, :, k].T).abs().fill_diagonal_(0) for k in range(kernels.shape[2])]
    mean = torch.stack(each).mean(0)
    expected = 1 - (mean / mean.max()).sort(dim=1, descending=True).values[:, :3].mean(1)
    torch.testing.assert_close(cop(weight), expected)


def test_moments_pool_samples_and_positions() -> None:
    x = torch.randn(7, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean, square = moments(x)
    torch.testing.assert_close(mean, torch.stack([x[:, c].mean() for c in range(3)]))
    torch.testing.assert_close(square - mean**2, torch.stack([x[:, c].var(correction=0) for c in range(3)]))
    assert moments(x[:, :, 0, 0]).shape == (2, 3)


def test_taylor_on_activations_is_a_mean_over_positions_then_over_samples() -> None:
    x, g = torch.randn(2, 5, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    expected = [sum(abs(float((x[n, c] * g[n, c]).sum())) / 4 for n in range(5)) / 5 for c in range(3)]
    torch.testing.assert_close(TaylorActivation().of_layer(x, g), torch.tensor(expected))
    torch.testing.assert_close(Taylor().of_layer(x, g), (x * g).sum((0, 2, 3)))
    torch.testing.assert_close(TaylorWeight().of_layer(x, g), (x * g).square().sum((1, 2, 3)))
