"""Pieces of deep deterministic policy gradients (Lillicrap et al., ICLR 2016, arXiv 1509.02971), as AMC uses them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


def truncated_normal(mean: Tensor, sigma: float, uniform: Tensor) -> Tensor:
    """Draws of a normal distribution cut off to [0, 1], ``Φ⁻¹(Φ(a) + u·(Φ(b) − Φ(a)))`` in units of σ around the mean.

    Args:
        mean: of the distribution before it is cut off, in [0, 1], any shape.
        sigma: its deviation, positive.
        uniform: numbers in [0, 1), of the same shape.

    Returns:
        float64, of that shape.

    Raises:
        ValueError: ``sigma`` is not positive.
    """
    if not sigma > 0:
        raise ValueError(f"sigma={sigma} must be positive, such as 0.5.")
    mean = mean.double()
    low, high = torch.special.ndtr(-mean / sigma), torch.special.ndtr((1 - mean) / sigma)
    drawn = torch.special.ndtri(low + uniform.double() * (high - low))
    inside: Tensor = (mean + sigma * drawn).clamp(0, 1)
    return inside


def td_targets(reward: Tensor, baseline: float, following: Tensor, done: Tensor, discount: float = 1.0) -> Tensor:
    """What the critic should say, ``y = r − b + γ·Q'(s', μ'(s'))``, without the last term where an episode ends.

    He et al., arXiv 1802.03494, eq. 4, with γ = 1.

    Args:
        reward: of each step, [N].
        baseline: b, an average of earlier rewards.
        following: what the target networks say of the next state, [N].
        done: whether the step was an episode's last, bool [N].
        discount: γ.

    Returns:
        [N].
    """
    return reward - baseline + discount * torch.where(done, 0.0, following)


@torch.no_grad()
def follow_(target: nn.Module, source: nn.Module, tau: float) -> None:
    """Moves the parameters of a target network a share ``tau`` of the way to those of its source, in place."""
    for mine, theirs in zip(target.parameters(), source.parameters(), strict=True):
        mine.lerp_(theirs, tau)


def two_hidden(inputs: int, width: int, output: nn.Module | None = None) -> nn.Sequential:
    """A network [N, inputs] → [N, 1] with two hidden layers and ReLU, and perhaps something after it."""
    layers = [nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1)]
    return nn.Sequential(*layers, *([] if output is None else [output]))


class Steps(NamedTuple):
    """Steps of episodes.

    Attributes:
        state: [N, features].
        action: [N].
        reward: [N].
        following: the next states, [N, features]; anything after the last step.
        done: bool [N].
    """

    state: Tensor
    action: Tensor
    reward: Tensor
    following: Tensor
    done: Tensor


class Replay:
    """The last steps, drawn from at random.

    Args:
        size: how many are kept.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.held: Steps | None = None

    def add(self, steps: Steps) -> None:
        """Take steps in; the oldest go."""
        both = steps if self.held is None else Steps(*map(torch.cat, zip(self.held, steps, strict=True)))
        self.held = Steps(*(part[-self.size :] for part in both))

    def draw(self, count: int, generator: torch.Generator) -> Steps:
        """Steps drawn with replacement."""
        assert self.held is not None
        rows = torch.randint(len(self.held.action), (count,), generator=generator)
        return Steps(*(part[rows] for part in self.held))
