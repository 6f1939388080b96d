"""Beta-Bernoulli masks on channel groups: one probability a group, a draw an example, gates where layers read them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_prune.channels.select.units import ChannelUnits
from lightning_prune.functional.beta_bernoulli import (
    divergence,
    kumaraswamy_mean,
    kumaraswamy_quantile,
    relaxed_bernoulli,
)
from lightning_prune.masks.gates import Gate
from lightning_prune.support.noise import Noise

_PRUNED = 1e-3  # an expected mask up to this is none


class BetaBernoulli:
    """The masks of some channel groups, whose gates share them.

    Args:
        groups: their number.
        device: of the parameters.
        alpha: α of the prior Beta(α, 1).
        temperature: of the relaxed draws.
        a, b: free parameters at the start; softplus gives those of the Kumaraswamy distribution.
    """

    def __init__(
        self, groups: int, device: torch.device, alpha: float, temperature: float, a: float = 2.0, b: float = 0.5413
    ) -> None:
        self.a = torch.full((groups,), a, device=device, requires_grad=True)
        self.b = torch.full((groups,), b, device=device, requires_grad=True)
        self.alpha, self.temperature = alpha, temperature
        self.price = 0.0  # of a nat
        self.drawn: Tensor | None = None  # [N, groups] while a step runs

    def draw(self, noise: Noise, n: int) -> Tensor:
        """Fresh masks for n examples, [n, groups], differentiable in the parameters; π is drawn once for all."""
        a, b = F.softplus(self.a), F.softplus(self.b)
        p = kumaraswamy_quantile(noise.uniform(len(a), like=a), a, b)
        return relaxed_bernoulli(noise.uniform(n, len(a), like=a), p, self.temperature)

    def expected(self) -> Tensor:
        """E[π] of each group, detached; 0 where it is so small that the group is pruned."""
        mean = kumaraswamy_mean(F.softplus(self.a.detach()), F.softplus(self.b.detach()))
        return torch.where(mean <= _PRUNED, 0.0, mean)

    def penalty(self) -> Tensor:
        """The KL divergence to the prior, summed over groups, at its price."""
        return self.price * divergence(F.softplus(self.a), F.softplus(self.b), self.alpha).sum()


class BernoulliGate(Gate):
    """Multiplies channels by the masks of their groups: those that are drawn while a step runs, else the expected ones.

    Args:
        masks: shared by all gates.
        groups: mask of each channel, int64 [channels]; -1 for channels that have none.
        dim: the channels' dim, from the end.
        owner: whether this gate stands for the parameters of all.
    """

    def __init__(self, masks: BetaBernoulli, groups: Tensor, dim: int, owner: bool) -> None:
        self.masks, self.groups, self.dim, self.owner = masks, groups, dim, owner

    def __call__(self, x: Tensor) -> Tensor:
        drawn = self.masks.drawn
        m = self.masks.expected()[None] if drawn is None else drawn
        m = torch.cat([m, torch.ones_like(m[:, :1])], 1)[:, self.groups]  # -1 is the one at the end
        if len(m) > 1 and len(m) != len(x):  # windows or tokens of one example stand beside each other
            if len(x) % len(m):
                raise ValueError(
                    f"masks were drawn for {len(m)} examples, and a layer reads {len(x)} rows: they cannot be told "
                    "apart by example. Exclude the layer (exclude=...)."
                )
            m = m.repeat_interleave(len(x) // len(m), 0)
        shape = [len(m)] + [1] * (x.ndim - 1)
        shape[self.dim] = len(self.groups)
        return x * m.view(shape).to(x.dtype)

    def parameters(self) -> Sequence[Tensor]:
        return [self.masks.a, self.masks.b] if self.owner else []

    def penalty(self) -> Tensor | None:
        return self.masks.penalty() if self.owner else None

    def expire(self) -> None:
        self.masks.drawn = None


def bernoulli_gates(masks: BetaBernoulli, units: ChannelUnits) -> dict[str, Gate]:
    """A gate on whatever reads channels.

    Args:
        masks: one of each group that may go, in their order.
        units: of the network.
    """
    place = torch.full((units.size,), -1, dtype=torch.int64)
    place[units.free] = torch.arange(int(units.free.sum()))
    found: dict[str, Gate] = {}
    for name, tap in units.taps.items():
        groups = torch.where(tap.groups >= 0, place[tap.groups.clamp_min(0)], -1).to(masks.a.device)
        found[name] = BernoulliGate(masks, groups, tap.dim, owner=not found)
    return found
