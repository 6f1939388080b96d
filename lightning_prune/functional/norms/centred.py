"""(x - mean) / std over rows that have lost channels, with a backward of few passes over memory.

With a share r of the channels left, the gradient of h = (x - mean) s is that of a norm of all channels whose upstream
gradient g is zero at those that are gone. Over the k that are left, with w of the scale in g,

    dx = s (g - r mean_k(g) - r h mean_k(g h)) = r own(g) + (1 - r) s g,

where own(g) is what PyTorch's kernel for a norm of k channels makes of g, this mean and this s.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def centred(x: Tensor, weight: Tensor | None, bias: Tensor | None, share: float, eps: float) -> Tensor:
    """Rows normalised over the last dim, scaled and shifted. It can be differentiated backward, any number of times.

    Args:
        x: [..., k], float32 or float64.
        weight, bias: [k], of x's dtype.
        share: k by the number of channels that the statistics count; those that are gone count as zeros.
        eps: added to the variance.
    """
    out: Tensor = _Centred.apply(x, weight, bias, share, eps)  # type: ignore[no-untyped-call]
    return out


def centred_by_parts(x: Tensor, weight: Tensor | None, bias: Tensor | None, share: float, eps: float) -> Tensor:
    """As `centred`, of operators that may be traced, transformed and differentiated in every way."""
    away, _, scale = _moments(x, share, eps)
    return affine(away * scale, weight, bias)


def is_followed(*tensors: Tensor | None) -> bool:
    """Whether something other than autograd's backward looks at what runs on these: a trace, or a transform."""
    if torch._C._get_tracing_state() is not None or torch._C._are_functorch_transforms_active():
        return True
    return any(type(t) not in (Tensor, torch.nn.Parameter) for t in tensors if t is not None)


def _moments(x: Tensor, share: float, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """x - mean, the mean [..., 1], and 1 / std [..., 1]. All terms of the variance are positive."""
    mean = x.mean(-1, keepdim=True) * share
    away = x - mean
    square = torch.linalg.vector_norm(away, dim=-1, keepdim=True).square()
    var = square * (share / x.shape[-1]) + (1 - share) * mean.square()
    return away, mean, (var + eps).rsqrt()


def affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """x weight + bias, each broadcast over x."""
    if weight is not None and bias is not None:
        return torch.addcmul(bias, x, weight)  # one pass over x for two
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


class _Centred(torch.autograd.Function):
    """Holds x for the backward, and a mean and a scale for each row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, share: float, eps: float) -> Tensor:
        away, mean, scale = _moments(x.contiguous(), share, eps)  # so what comes out is, as of PyTorch's own
        ctx.save_for_backward(x, weight, bias, mean, scale)
        ctx.share, ctx.eps = share, eps
        out = away.mul_(scale)
        if weight is not None and bias is not None:
            return torch.addcmul(bias, out, weight, out=out)  # as `affine`, in place
        return affine(out, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, scale = ctx.saved_tensors
        grad, wanted = grads[0].contiguous(), ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():  # someone differentiates this again, through the mean and the scale
            leaves = [t for t, asked in zip((x, weight, bias), wanted, strict=True) if asked]
            out = centred_by_parts(x, weight, bias, ctx.share, ctx.eps)
            found = iter(torch.autograd.grad(out, leaves, grad, create_graph=True))
            return *(next(found) if asked else None for asked in wanted), None, None
        gain = x.new_ones(x.shape[-1]) if weight is None else weight
        dx, *others = torch.ops.aten.native_layer_norm_backward(
            grad, x.contiguous(), x.shape[-1:], mean, scale, gain * ctx.share, bias, list(wanted)
        )
        if wanted[0]:
            dx += (grad * (gain * (1 - ctx.share))).mul_(scale)
        return dx, *others, None, None
