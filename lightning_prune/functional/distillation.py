"""Knowledge distillation, the equations: soft targets, and features compared by what does not depend on their width."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_prune.functional.ltp import at_least_float32

Matching = Literal["attention", "similarity"]


def soft_target_loss(student: Tensor, teacher: Tensor, temperature: float, dim: int = 1) -> Tensor:
    """``T² · KL(softmax(t/T) ‖ softmax(s/T))``, mean over all but the class dim (Hinton et al., arXiv 1503.02531).

    The factor T² keeps the gradient's size when T changes. In float32 at least.

    Args:
        student: logits, [N, C] or [N, C, ...] (classes in ``dim``).
        teacher: logits of the same shape; a constant.
        temperature: T > 0.
        dim: of the classes.

    Raises:
        ValueError: the shapes differ.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"the student's logits are {tuple(student.shape)} and the teacher's {tuple(teacher.shape)}: expected the "
            "same shape. Take a teacher of the same classes"
        )
    log_p = F.log_softmax(at_least_float32(student) / temperature, dim)
    log_q = F.log_softmax(at_least_float32(teacher.detach()) / temperature, dim)
    return temperature**2 * (log_q.exp() * (log_q - log_p)).sum(dim).mean()


def attention_map(features: Tensor) -> Tensor:
    """Where a layer looks: squares, summed over channels, each sample's map of Euclidean norm 1: [N, positions].

    ``Q/‖Q‖₂`` with ``Q = Σ_c A_c²`` (Zagoruyko & Komodakis, arXiv 1612.03928). Removing channels leaves its shape.

    Args:
        features: [N, C, H, W] or [N, C, D, H, W], or tokens [N, positions, C].

    Raises:
        ValueError: there are no positions.
    """
    if features.ndim < 3:
        raise ValueError(
            f"features of shape {tuple(features.shape)} have no positions to attend to: expected [N, C, H, W] or "
            "[N, tokens, C]. Match a layer before the pooling, or take matching='similarity'"
        )
    squares = at_least_float32(features).square().sum(-1 if features.ndim == 3 else 1)
    return F.normalize(squares.flatten(1), dim=1)


def similarity_map(features: Tensor) -> Tensor:
    """Which samples of the batch are alike to a layer: ``A Aᵀ``, each row of Euclidean norm 1: [N, N].

    ``A`` is [N, everything else] (Tung & Mori, arXiv 1907.09682). Neither channels nor positions count.
    """
    flat = at_least_float32(features).flatten(1)
    return F.normalize(flat @ flat.T, dim=1)


def feature_loss(student: Tensor, teacher: Tensor, matching: Matching = "attention") -> Tensor:
    """Mean square difference of two layers' maps, a scalar. Their widths may differ.

    Args:
        student: features, see `attention_map` and `similarity_map`.
        teacher: features of the same batch; a constant. With "attention" their positions must be as many.
        matching: how they are compared.

    Raises:
        ValueError: the maps have different shapes.
    """
    of = attention_map if matching == "attention" else similarity_map
    mine, theirs = of(student), of(teacher.detach())
    if mine.shape != theirs.shape:
        raise ValueError(
            f"features of {tuple(student.shape)} and of {tuple(teacher.shape)} give {matching} maps of "
            f"{tuple(mine.shape)} and {tuple(theirs.shape)}: expected the same. Pair layers of one resolution"
        )
    return F.mse_loss(mine, theirs)


def mixed(task: Tensor, soft: Tensor, features: Tensor | None, alpha: float, beta: float) -> Tensor:
    """``(1 − α)·task + α·soft + β·features``, a scalar."""
    loss = (1 - alpha) * task + alpha * soft.to(task.dtype)
    return loss if features is None else torch.add(loss, features.to(task.dtype), alpha=beta)
