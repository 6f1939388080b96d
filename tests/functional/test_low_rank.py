"""Two factors for one matrix, against PyTorch's own decomposition and cases worked out by hand."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from lightning_prune.errors import BudgetError
from lightning_prune.functional import low_rank


def matrix(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (5, 5)])
def test_factors_are_the_truncated_decomposition(shape: tuple[int, int]) -> None:
    w = matrix(*shape)
    u, s, v = torch.linalg.svd(w, full_matrices=False)
    torch.testing.assert_close(low_rank.basis(w).values.float(), s)
    for rank in (1, 3, 5):
        first, second = low_rank.factors(w, rank)
        assert (first.shape, second.shape) == ((rank, shape[1]), (shape[0], rank))
        torch.testing.assert_close(second @ first, (u[:, :rank] * s[:rank]) @ v[:rank], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(first.norm(dim=1), second.norm(dim=0), rtol=1e-4, atol=1e-5)


def test_a_matrix_of_zeros_has_factors_that_train() -> None:
    w = torch.zeros(4, 6)
    first, second = low_rank.factors(w, 2)
    assert torch.equal(second @ first, w)
    assert first.abs().sum() + second.abs().sum() > 0


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_factors_of_a_copy_stand_on_the_same_directions_and_on_memory_of_their_own(shape: tuple[int, int]) -> None:
    w, other = matrix(*shape), matrix(*shape) + 0.1 * matrix(*shape, seed=1)
    first, second = low_rank.factors(w, 4)
    like = low_rank.factors_like(other, first, second)
    for given, found in zip((first, second), low_rank.factors_like(w, first, second), strict=True):
        torch.testing.assert_close(found, given, rtol=1e-4, atol=1e-5)
        assert found.data_ptr() != given.data_ptr()
    projector = second @ torch.linalg.pinv(second)  # the least-squares fit on those directions
    wanted = projector @ other if shape[0] <= shape[1] else other @ torch.linalg.pinv(first) @ first
    torch.testing.assert_close(like[1] @ like[0], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(4, 7), (7, 4)])
def test_gates_scale_components(shape: tuple[int, int]) -> None:
    w = matrix(*shape)
    vectors, _ = low_rank.basis(w)
    u, s, v = torch.linalg.svd(w, full_matrices=False)
    z = torch.tensor([1.0, 0.0, 0.5, 0.25])
    torch.testing.assert_close(low_rank.gated(w, vectors.float(), z), (u * (s * z)) @ v, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(low_rank.gated(w, vectors.float(), torch.ones(4)), w, rtol=1e-4, atol=1e-5)


def test_the_rank_that_pays_is_the_last_one_below_the_matrix() -> None:
    for rows, columns in itertools.product(range(1, 9), repeat=2):
        ranks = [r for r in range(1, 9) if r * (rows + columns) < rows * columns]
        assert low_rank.most_rank(rows, columns) == max(ranks, default=0)


def test_the_rank_for_an_energy() -> None:
    values = torch.tensor([3.0, 2.0, 1.0]).double()  # squares: 9, 4, 1 of 14
    assert [low_rank.rank_for_energy(values, e) for e in (0.5, 9 / 14, 0.65, 0.93, 0.999)] == [1, 1, 2, 3, 3]
    assert low_rank.rank_for_energy(torch.zeros(3), 0.5) == 3


def test_a_budget_keeps_the_highest_scores_that_fit() -> None:
    """Components cost 5 and 7 weights; the first matrix is whole at 2 of 2 components, as 6 are less than 10."""
    shapes, scores = [(2, 3), (3, 4)], [torch.tensor([4.0, 1.0]), torch.tensor([3.0, 5.0, 2.0])]

    def kept(budget: int) -> list[list[bool]]:
        return [m.tolist() for m in low_rank.components_for_budget(scores, shapes, [1, 1], budget)]

    assert kept(12) == [[True, False], [False, True, False]]
    assert kept(13) == [[True, True], [False, True, False]]  # the last of the first matrix costs one weight more
    assert kept(17) == [[True, False], [True, True, True]]  # 5 + 12: whole from the second component on
    with pytest.raises(BudgetError, match=r"leaves 11 weights to 2 layers of 18.*fewest components alone take 12"):
        kept(11)


def test_a_budget_is_never_passed() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(8, 16), (16, 8), (5, 30)]
    for budget in range(90, 400, 37):
        scores = [torch.rand(min(shape), generator=generator) for shape in shapes]
        masks = low_rank.components_for_budget(scores, shapes, [1, 1, 1], budget)
        costs = [min(int(m.sum()) * sum(shape), shape[0] * shape[1]) for m, shape in zip(masks, shapes, strict=True)]
        assert sum(costs) <= budget
        assert sum(costs) > min(budget, 8 * 16 + 16 * 8 + 5 * 30) - max(map(sum, shapes))
