"""Low rank: a weight as two, the directions that its rank-one components stand on, and which of them a budget keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_prune.errors import BudgetError

_FLOOR = 1e-2  # of the largest singular value: smaller ones are shared between two factors as if they were so large


class Basis(NamedTuple):
    """The principal directions of a matrix W [rows, columns] on its shorter side, the most important first.

    Attributes:
        vectors: orthonormal, one a column, [n, n] with n = min(rows, columns): the left singular vectors of W if it
            has no more rows than columns, else the right ones.
        values: the singular values, descending, [n].
    """

    vectors: Tensor
    values: Tensor


def most_rank(rows: int, columns: int) -> int:
    """The highest rank at which two factors of a matrix have fewer entries than itself; 0 if there is none."""
    return (rows * columns - 1) // (rows + columns)


def _exact(weight: Tensor) -> Tensor:
    """In float64, which not every device has."""
    device = "cpu" if weight.device.type == "mps" else weight.device
    return weight.detach().to(device, torch.float64)


@torch.no_grad()
def basis(weight: Tensor) -> Basis:
    """The principal directions of a matrix, in float64, from the eigenvectors of its smaller Gram matrix."""
    w = _exact(weight)
    values, vectors = torch.linalg.eigh(w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w)
    return Basis(vectors.flip(1), values.flip(0).clamp_min(0).sqrt())


def gated(weight: Tensor, vectors: Tensor, scales: Tensor) -> Tensor:
    """A matrix W with each of its rank-one components scaled: ``U diag(z) Uᵀ W``, or ``W V diag(z) Vᵀ``.

    Args:
        weight: W, [rows, columns].
        vectors: U or V as `Basis` has them, [n, k].
        scales: z, [k].
    """
    if weight.shape[0] <= weight.shape[1]:
        return (vectors * scales) @ (vectors.T @ weight)
    return (weight @ vectors * scales) @ vectors.T


@torch.no_grad()
def factors(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best two factors of a matrix at a rank (Eckart & Young 1936): (first [rank, columns], second [rows, rank]).

    ``second @ first`` is the truncated singular value decomposition. Each has the square root of the singular values,
    so that both train alike; where these are tiny, the first part takes them, so that a layer of zeros trains too.
    """
    vectors, values = basis(weight)
    w, vectors = _exact(weight), vectors[:, :rank]
    root = values[:rank].clamp_min(_FLOOR * float(values[0]) or 1.0).sqrt()
    if w.shape[0] <= w.shape[1]:
        first, second = (vectors.T @ w) / root[:, None], vectors * root
    else:
        first, second = vectors.T * root[:, None], (w @ vectors) / root
    return first.to(weight), second.to(weight)


@torch.no_grad()
def factors_like(weight: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two factors of another matrix on the directions that `factors` found for one: averages of both can be taken.

    The part with the directions is the same; the other is the least-squares fit to ``weight``.
    """
    w = _exact(weight)
    if w.shape[0] <= w.shape[1]:
        fixed = second.to(w)
        return ((fixed / fixed.square().sum(0)).T @ w).to(weight), second.to(weight, copy=True)
    fixed = first.to(w)
    return first.to(weight, copy=True), (w @ (fixed / fixed.square().sum(1, keepdim=True)).T).to(weight)


def rank_for_energy(values: Tensor, energy: float) -> int:
    """The least rank whose components hold that share of a matrix's squared norm; values: singular, descending."""
    share = values.square().cumsum(0) / values.square().sum().clamp_min(torch.finfo(values.dtype).tiny)
    return min(len(values), int((share < energy).sum()) + 1)


def check_floor(shapes: Sequence[tuple[int, int]], least: Sequence[int], budget: int) -> None:
    """Raises BudgetError if the fewest components of some matrices cost more than a number of weights."""
    floor = sum(_cost(shape, n) for shape, n in zip(shapes, least, strict=True))
    if floor > budget:
        part = "" if budget > 0 else " or say by network= which part counts (all else that it holds is more already),"
        raise BudgetError(
            f"The target leaves {budget} weights to {len(shapes)} layers of {sum(r * c for r, c in shapes)}, and their "
            f"fewest components alone take {floor}. Raise the target,{part} lower min_keep, or exclude layers."
        )


def _cost(shape: tuple[int, int], components: int) -> int:
    rows, columns = shape
    return min(components * (rows + columns), rows * columns)


def components_for_budget(
    scores: Sequence[Tensor], shapes: Sequence[tuple[int, int]], least: Sequence[int], budget: int
) -> list[Tensor]:
    """Which rank-one components of several matrices to keep: the highest scores that fit into a number of weights.

    k components of a matrix [rows, columns] cost ``k(rows + columns)`` weights, or ``rows·columns`` where that is no
    more: it then stays dense, and keeps all of them.

    Args:
        scores: one a matrix, [components].
        shapes: of the matrices.
        least: fewest components of each, at least 1.
        budget: weights in all.

    Returns:
        One bool tensor a matrix, True where kept.

    Raises:
        BudgetError: the fewest components alone cost more.
    """
    check_floor(shapes, least, budget)
    kept = [torch.zeros(len(s), dtype=torch.bool) for s in scores]
    for mask, score, n in zip(kept, scores, least, strict=True):
        mask[torch.topk(score.detach().cpu(), n).indices] = True
    counts, spent = list(least), sum(map(_cost, shapes, least))
    homes = [(i, j) for i, s in enumerate(scores) for j in range(len(s))]
    joined = torch.cat([s.detach().double().cpu() for s in scores])
    for k in joined.argsort(descending=True, stable=True).tolist():
        i, j = homes[k]
        more = _cost(shapes[i], counts[i] + 1) - _cost(shapes[i], counts[i])
        if not kept[i][j] and spent + more <= budget:
            kept[i][j], counts[i], spent = True, counts[i] + 1, spent + more
    full = [_cost(shape, n) == shape[0] * shape[1] for shape, n in zip(shapes, counts, strict=True)]
    return [mask | whole for mask, whole in zip(kept, full, strict=True)]
