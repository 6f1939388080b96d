"""Hard-concrete gates on the rank-one components of a weight, while the weight stays the dense Parameter that it is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_prune.functional import hard_concrete
from lightning_prune.functional.low_rank import gated
from lightning_prune.functional.ltp import at_least_float32
from lightning_prune.masks import Gate


class ComponentGate(Gate):
    """What the network uses in place of a weight W: ``U diag(z) Uᵀ W``, or ``W V diag(z) Vᵀ`` where V is the smaller.

    In training z is sampled anew when the noise is; in evaluation it is `evaluation_gates`. W learns through the gate
    as the other factor: ``UᵀW`` or ``WV``. Everything is in float32 at least, under autocast too.

    Args:
        vectors: U or V, orthonormal, [n, n], read live.
        log_alpha: [n], learned.
        module: the layer; its train mode says which gates hold.
        weight: what an open component costs, as a share of what all layers together take.
        price: 0-dim, read live: dL/dq of the Lagrangian in the pruned share q.
    """

    def __init__(self, vectors: Tensor, log_alpha: Tensor, module: nn.Module, weight: float, price: Tensor) -> None:
        self.vectors, self.log_alpha, self.module = vectors, log_alpha.requires_grad_(), module
        self.weight, self.price = weight, price
        self.noise = torch.full_like(log_alpha, 0.5, requires_grad=False)

    def __call__(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            if self.module.training:
                z = hard_concrete.sample(self.log_alpha, self.noise)
            else:
                z = hard_concrete.evaluation_gates(self.log_alpha)
            w = at_least_float32(x.flatten(1))
            return gated(w, self.vectors, z.to(w.dtype)).view_as(x).to(x.dtype)

    def parameters(self) -> Sequence[Tensor]:
        return [self.log_alpha]

    def share(self) -> Tensor:
        """What is expected to be left of the weight, as a share of what all layers together take: 0-dim."""
        return self.weight * hard_concrete.open_probability(self.log_alpha).sum()

    def penalty(self) -> Tensor:
        return -self.price * self.share()
