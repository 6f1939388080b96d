"""Mutual regularization: what moves a BatchNorm scale factor to zero or away from it (Chen & Yang 2023, section 2.2).

The penalty on the scale factors of a layer is ``φ(γ) = Σ τ|γ_i| − |I(γ_i; z_i)|`` [eq. 4]. The paper names no estimator
for the mutual information I between a scale factor and its channel's output ``z = γ·ẑ + β``; without noise it would
be infinite. Each estimator here states its noise, is zero at ``γ = 0``, grows with ``|γ|``, and can be differentiated.

``dφ/d|γ| = τ − dI/d|γ|`` has two zeros where the estimator is steep enough: below the first (the repeller) a factor
shrinks to zero, above it is drawn to the second (the attractor). Where it is not steep enough, φ is a weaker L1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

_STEEPEST = torch.logspace(-4, 2, 1201, dtype=torch.float64)  # where the slope of an estimator is searched


class Information(Protocol):
    """An estimate of I(γ; z) in nats."""

    def value(self, gamma: Tensor) -> Tensor:
        """I at ``gamma`` ≥ 0, elementwise, same shape."""
        ...

    def slope(self, gamma: Tensor) -> Tensor:
        """dI/dγ at ``gamma`` ≥ 0, elementwise, same shape."""
        ...


@dataclass(frozen=True)
class GaussianChannel:
    """``I = ½ ln(1 + γ²/σ²)``: what a channel of unit variance, scaled by γ, tells through Gaussian noise.

    Args:
        noise: σ, standard deviation of the noise, in units of γ.
    """

    noise: float = 0.25

    def value(self, gamma: Tensor) -> Tensor:
        return 0.5 * torch.log1p((gamma / self.noise).square())

    def slope(self, gamma: Tensor) -> Tensor:
        return gamma / (self.noise**2 + gamma * gamma)


@dataclass(frozen=True)
class BinnedEntropy:
    """The entropy of ``γ·ẑ``, ẑ ~ N(0, 1), counted in bins of fixed width: a histogram estimate without sampling.

    About the Gaussian channel with ``noise = width/√(2πe) = 0.242·width``, and flatter at 0.

    Args:
        width: of the bins, in units of γ; one bin is centred on 0.
    """

    width: float = 1.0

    def value(self, gamma: Tensor) -> Tensor:
        p, _ = self._bins(gamma)
        entropy: Tensor = -torch.special.xlogy(p, p).sum(-1)
        return entropy

    def slope(self, gamma: Tensor) -> Tensor:
        p, dp = self._bins(gamma)
        return -(dp * p.clamp_min(torch.finfo(p.dtype).tiny).log()).sum(-1)

    def _bins(self, gamma: Tensor) -> tuple[Tensor, Tensor]:
        """Probability of each bin and its derivative in γ, [..., bins]; those beyond 9 standard deviations are 0."""
        gamma = gamma.clamp_min(1e-12)
        half = math.ceil(9 * float(gamma.max()) / self.width) + 1 if gamma.numel() else 1
        edges = (torch.arange(-half, half + 2, dtype=gamma.dtype, device=gamma.device) - 0.5) * self.width
        x = edges / gamma.unsqueeze(-1)
        lower, upper = torch.special.ndtr(x[..., :-1]), torch.special.ndtr(x[..., 1:])
        density = torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi) * -x / gamma.unsqueeze(-1)
        return upper - lower, density[..., 1:] - density[..., :-1]


@dataclass(frozen=True)
class ClassInformation:
    """``I = ½ ln[(γ²v + σ²)/(γ²w + σ²)]``: what a channel's pooled output tells of the label through Gaussian noise.

    Not in the paper. A channel whose outputs do not depend on the class (w = v) tells nothing and is only shrunk;
    ``v = 1, w = 0`` is the `GaussianChannel`.

    Args:
        total: v ≥ 0, variance of each channel's pooled normalised output; shape of γ.
        within: w, its mean variance within a class, 0 ≤ w ≤ v; shape of γ.
        noise: σ, in units of γ.
    """

    total: Tensor
    within: Tensor
    noise: float = 0.25

    def value(self, gamma: Tensor) -> Tensor:
        square, noise = gamma * gamma, self.noise**2
        return 0.5 * (torch.log(square * self.total + noise) - torch.log(square * self.within + noise))

    def slope(self, gamma: Tensor) -> Tensor:
        square, noise = gamma * gamma, self.noise**2
        return gamma * (self.total / (square * self.total + noise) - self.within / (square * self.within + noise))


def fixed_points(tau: float, information: Information) -> tuple[float, float] | None:
    """(repeller, attractor): where ``dI/dγ = τ``, first rising and then falling. None if the slope stays below τ."""
    grid = _STEEPEST
    above = (information.slope(grid) > tau).nonzero().flatten()
    if not len(above):
        return None
    first, last = int(above[0]), int(above[-1])
    low = _bisect(information, tau, float(grid[first - 1]) if first else 0.0, float(grid[first]))
    high = _bisect(information, tau, float(grid[last]), float(grid[min(last + 1, len(grid) - 1)]))
    return low, high


def _bisect(information: Information, tau: float, left: float, right: float) -> float:
    """A zero of ``dI/dγ − τ`` between two points on either side of it."""

    def excess(x: float) -> float:
        return float(information.slope(torch.tensor([x], dtype=torch.float64))) - tau

    sign = 1.0 if excess(right) >= 0 else -1.0
    for _ in range(60):
        middle = 0.5 * (left + right)
        if sign * excess(middle) < 0:
            left = middle
        else:
            right = middle
    return 0.5 * (left + right)


def check_polarises(tau: float, information: Information) -> tuple[float, float]:
    """`fixed_points`, or an error: a penalty without them shrinks every factor to 0, like a weaker L1.

    Raises:
        ValueError: dI/dγ is nowhere above ``tau``; for the Gaussian channel that is ``noise ≥ 1/(2·tau)``.
    """
    points = fixed_points(tau, information)
    if points is None:
        if isinstance(information, GaussianChannel):
            raise ValueError(
                f"noise={information.noise} does not polarise with tau={tau}: from 1/(2·tau) = {1 / (2 * tau):.3g} on "
                "the information never outweighs the L1 term, so every scale factor just shrinks. Lower noise or tau."
            )
        raise ValueError(
            f"{information} does not polarise with tau={tau}: its slope is at most "
            f"{float(information.slope(_STEEPEST).max()):.3g} anywhere. Lower tau, or the noise or bin width."
        )
    return points


def proximal_step(
    gamma: Tensor, step: Tensor | float, tau: float, information: Information | None, ceiling: Tensor | float
) -> Tensor:
    """One decoupled step on φ: ``clamp(soft_threshold(γ + step·dI/dγ, step·τ), 0, ceiling)``.

    The step does not pass through the optimizer, so none can normalise it away, and factors reach 0 exactly.

    Args:
        gamma: ≥ 0, any shape.
        step: step size ≥ 0, broadcast to ``gamma``.
        tau: price of |γ| per unit.
        information: None leaves plain L1.
        ceiling: upper bound of the result, broadcast; the paper's ε.
    """
    moved = gamma if information is None else gamma + step * information.slope(gamma)
    return torch.minimum((moved - step * tau).clamp_min(0), torch.as_tensor(ceiling, dtype=gamma.dtype))
