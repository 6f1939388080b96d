"""Scores of filters against loops in float64."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_prune.scores.fpgm import fpgm
from lightning_prune.scores.norm import filter_norm

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
