"""Distillation's equations against definitions written out, and what does not change them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_prune.functional.distillation import (
    attention_map,
    feature_loss,
    mixed,
    similarity_map,
    soft_target_loss,
)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_soft_targets_are_a_kl_divergence() -> None:
    student, teacher = torch.tensor([[0.0, math.log(3)]]), torch.tensor([[math.log(2), 0.0]])
    p, q = (1 / 4, 3 / 4), (2 / 3, 1 / 3)
    expected = sum(b * math.log(b / a) for a, b in zip(p, q, strict=True))
    assert float(soft_target_loss(student, teacher, 1.0)) == pytest.approx(expected)
    assert float(soft_target_loss(5 * student, 5 * teacher, 5.0)) == pytest.approx(25 * expected)  # T²
    assert float(soft_target_loss(teacher, teacher, 3.0)) == 0


def test_the_gradient_of_soft_targets_is_a_difference_of_probabilities() -> None:
    student, teacher = randn(6, 5).requires_grad_(), randn(6, 5, seed=1).requires_grad_()
    soft_target_loss(student, teacher, 4.0).backward()
    expected = 4.0 * ((student / 4).softmax(1) - (teacher / 4).softmax(1)) / 6
    torch.testing.assert_close(student.grad, expected.detach())
    assert teacher.grad is None


def test_classes_may_stand_in_another_dim() -> None:
    student, teacher = randn(3, 7, 5), randn(3, 7, 5, seed=1)
    by_rows = soft_target_loss(student.flatten(0, 1), teacher.flatten(0, 1), 2.0)
    torch.testing.assert_close(soft_target_loss(student, teacher, 2.0, -1), by_rows)
    torch.testing.assert_close(soft_target_loss(student.movedim(2, 1), teacher.movedim(2, 1), 2.0), by_rows)
    with pytest.raises(ValueError, match=r"\(3, 7, 5\) and the teacher's \(3, 7, 4\)"):
        soft_target_loss(student, teacher[..., :4], 2.0)


def test_an_attention_map_sums_squares_over_channels() -> None:
    a = randn(2, 3, 2, 2)
    for n in range(2):
        q = torch.stack([sum(a[n, c, i, j] ** 2 for c in range(3)) for i in range(2) for j in range(2)])
        torch.testing.assert_close(attention_map(a)[n], q / q.norm())
    tokens = a.flatten(2).transpose(1, 2)  # the same positions as tokens
    torch.testing.assert_close(attention_map(tokens), attention_map(a))
    with pytest.raises(ValueError, match=r"\(2, 3\) have no positions"):
        attention_map(randn(2, 3))


def test_a_similarity_map_tells_which_samples_are_alike() -> None:
    a = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]])
    g = torch.tensor([[1.0, 1.0, 0.0], [1.0, 2.0, 2.0], [0.0, 2.0, 4.0]])
    torch.testing.assert_close(similarity_map(a), g / g.norm(dim=1, keepdim=True))


@pytest.mark.parametrize("matching", ["attention", "similarity"])
def test_features_of_other_widths_compare(matching: str) -> None:
    a = randn(4, 6, 3, 3)
    assert float(feature_loss(a, a, matching)) == 0
    wide = torch.cat([a, a], dim=1)[:, torch.randperm(12)]  # the same features, each twice, in another order
    assert float(feature_loss(wide, a, matching)) == pytest.approx(0, abs=1e-12)
    assert float(feature_loss(wide, a, matching)) < 1e-3 * float(feature_loss(randn(4, 12, 3, 3, seed=2), a, matching))
    empty = a[:, :0].requires_grad_()
    assert float(feature_loss(empty, a, matching)) > 0  # of a removed branch: nothing to learn, and no NaN


def test_maps_of_other_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="Pair layers of one resolution"):
        feature_loss(randn(4, 6, 3, 3), randn(4, 6, 2, 2))
    feature_loss(randn(4, 6, 3, 3), randn(4, 6, 2, 2), "similarity")


def test_the_mixture_is_linear() -> None:
    task, soft, features = (torch.tensor(v) for v in (1.0, 2.0, 0.5))
    assert float(mixed(task, soft, None, 0.25, 10.0)) == pytest.approx(0.75 + 0.5)
    assert float(mixed(task, soft, features, 0.25, 10.0)) == pytest.approx(0.75 + 0.5 + 5.0)


def test_half_precision_is_compared_in_float32() -> None:
    student, teacher = 40 * randn(8, 10).bfloat16(), 40 * randn(8, 10, seed=1).bfloat16()
    exact = soft_target_loss(student.float(), teacher.float(), 1.0)
    assert soft_target_loss(student, teacher, 1.0).dtype == torch.float32
    torch.testing.assert_close(soft_target_loss(student, teacher, 1.0), exact)
    assert F.mse_loss(attention_map(student.view(2, 2, 4, 5)), attention_map(student.float().view(2, 2, 4, 5))) == 0
