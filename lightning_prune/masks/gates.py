"""Gates: what turns a parameter into the weight that the network uses, or a layer's output into what it passes on.

A plain `Gate` is differentiated by autograd, its own parameters too. The backward of a `MaskGate` is the identity, so
the parameter's ``.grad`` gathers ``dL/dv`` through whatever the user has: accumulation, loss scaling, all-reduce.
`MaskGate.step_` turns it into the method's gradient once per optimizer step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_prune.functional.ltp import at_least_float32
from lightning_prune.functional.shrink import FORMS
from lightning_prune.masks import ltp as kernels
from lightning_prune.masks.fading import faded, faded_step_, held, squares

_MARGIN = 1e-3  # share of its magnitude that the smallest kept weight is left with


class _Through(torch.autograd.Function):
    """Forward: the masked weight. Backward: the gradient as it is, to the parameter. For compiled graphs."""

    @staticmethod
    def forward(ctx: Any, param: Tensor, masked: Tensor) -> Tensor:
        return masked.view_as(masked)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class Gate:
    """A soft mask on one parameter, or on the output of one layer."""

    def __call__(self, x: Tensor) -> Tensor:
        """What the network uses in place of ``x``, of its shape."""
        raise NotImplementedError

    def parameters(self) -> Sequence[Tensor]:
        """What the gate learns by gradient descent; the callback owns, steps and saves it."""
        return ()

    def penalty(self) -> Tensor | None:
        """What its state costs, a scalar that is added to the loss once per optimizer step; None: nothing."""
        return None

    def expire(self) -> None:
        """Drop what was computed from the parameter: it may have changed."""

    def forget(self) -> None:
        """Expire, and give up the memory that it took."""
        self.expire()

    def renew(self, param: Tensor) -> None:
        """Compute ahead of the forward what can be."""

    @property
    def folds(self) -> bool:
        """Whether it changes the weights that it keeps, so that the removal has to: `fold` says to what."""
        return False

    def fold(self, w: Tensor, least: Tensor) -> Tensor:
        """What takes the place of a weight at the removal: the pruned network is then the one that was trained.

        Args:
            w: weights.
            least: the smallest magnitude that the removal leaves of the layer, a scalar. From it on the result is not
                zero; below it, it does not count.
        """
        return w


class MaskGate(Gate):
    """Base of gates with thresholds. Keeps the masked weight in a buffer: computed once, read as often as asked.

    The buffer is renewed when the parameter's version changes, and after `expire`, which the owner calls wherever a
    parameter may have changed unseen (through ``.data``): at each batch and after each optimizer step.
    """

    def __init__(self) -> None:
        self._masked: Tensor | None = None
        self._version = -1

    def mask(self, w: Tensor, out: Tensor | None) -> Tensor:
        """The masked weight, into ``out`` if given."""
        raise NotImplementedError

    def step_(self, w: Tensor, grad: Tensor, count: bool) -> Tensor:
        """Turn ``grad = dL/dv`` into the weight's gradient in place; return the sums named by `kernels.STATS`."""
        raise NotImplementedError

    def pair(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """The weights and the masked ones, of what stands in the parameter's place before an optimizer steps."""
        return w, self._cached(w)

    def expire(self) -> None:
        """Drop the masked weight: the parameter or the gate has changed."""
        self._version = -1

    def into(self, w: Tensor, place: Tensor) -> None:
        """Write the masked weight to a place of the caller's, which is the buffer until `forget`."""
        self._masked, self._version = self.mask(w, place), w._version

    def forget(self) -> None:
        """Expire, and give up the buffer, which is of the weight's size."""
        self._masked, self._version = None, -1

    def renew(self, param: Tensor) -> None:
        """Compute the masked weight ahead of the forward: layer after layer is faster than one here, one there."""
        if self._masked is not None:  # else nobody has asked for it yet
            self._cached(param)

    def __call__(self, param: Tensor) -> Tensor:
        """The weight that the network uses, with the identity as its gradient to ``param``."""
        compiling = torch.compiler.is_compiling()
        masked = self.mask(param.detach(), None) if compiling else self._cached(param)
        if not (torch.is_grad_enabled() and param.requires_grad):
            return masked
        if compiling:
            return _Through.apply(param, masked)  # type: ignore[no-any-return]
        # A view of the parameter whose memory is the mask's: its backward is autograd's own, without a call of Python.
        weight = param.view_as(param)
        weight.data = masked
        return weight

    @torch.no_grad()
    def _cached(self, param: Tensor) -> Tensor:
        buffer, w = self._masked, param.detach()
        if buffer is not None and self._version == param._version and buffer.device == w.device:
            return buffer
        kind = ("shape", "dtype", "device")
        fits = buffer is not None and all(getattr(buffer, k) == getattr(w, k) for k in kind)
        if buffer is None or not fits or buffer.is_inference() or buffer.stride() != w.stride():
            with torch.inference_mode(False):  # a buffer made in validation must serve training too
                buffer = torch.empty_like(w)
        self._masked, self._version = self.mask(w, buffer), param._version
        return self._masked


class SoftGate(MaskGate):
    """LTP's gate, ``v = w·sigm(slope·w² + shift)``, ``slope = 1/T``, ``shift = −τ/T`` (0-dim tensors, read live).

    With ``fuse`` its kernels are compiled by torch.compile. ``feedback`` is the share of the gradient that pruned
    weights get.
    """

    def __init__(self, slope: Tensor, shift: Tensor, fuse: bool = False, feedback: float = 0.0) -> None:
        super().__init__()
        self.slope, self.shift, self.fuse, self.feedback = slope, shift, fuse, feedback
        self._sums: kernels.Sums | None = None

    def mask(self, w: Tensor, out: Tensor | None) -> Tensor:
        masked, self._sums = kernels.soft_mask(w, self.slope, self.shift, out, self.fuse)
        return masked

    def step_(self, w: Tensor, grad: Tensor, count: bool) -> Tensor:
        masked = self._cached(w)  # the forward's own, unless it was compiled
        return kernels.soft_step_(w, grad, masked, self._sums, self.slope, self.shift, count, self.fuse, self.feedback)


class HardGate(MaskGate):
    """A step: ``v = w`` where ``w² > τ``, else 0 (``tau``: 0-dim tensor, read live).

    Pruned weights get the share ``feedback`` of their gradient.

    Attributes:
        form: of `functional.shrink.FORMS`, in a subclass that changes what it keeps.
    """

    form = "step"

    def __init__(self, tau: Tensor, feedback: float = 0.0) -> None:
        super().__init__()
        self.tau, self.feedback = tau, feedback

    def keeps(self, w: Tensor) -> Tensor:
        """Which weights are kept now, bool."""
        return at_least_float32(w).square() > self.tau

    def mask(self, w: Tensor, out: Tensor | None) -> Tensor:
        pruned = torch.where(self.keeps(w), w, torch.zeros_like(w))
        return pruned if out is None else out.copy_(pruned)

    def step_(self, w: Tensor, grad: Tensor, count: bool) -> Tensor:
        above = self.keeps(w.detach())
        if self.feedback < 1:
            grad.mul_(torch.where(above, 1.0, self.feedback).to(grad.dtype) if self.feedback else above)
        kept = above.sum().to(torch.float32)
        zero = torch.zeros_like(kept)
        return torch.stack([zero, zero, kept, kept, zero])

    @property
    def folds(self) -> bool:
        return self.form in FORMS

    def fold(self, w: Tensor, least: Tensor) -> Tensor:
        # The budget may keep weights that the gate does not: its threshold then stays just under the smallest of them.
        return FORMS[self.form](w, torch.minimum(self.tau, (least * (1 - _MARGIN)).square()))


class FadingGate(HardGate):
    """LTP's gate without a jump, ``v = w·relu(1 − (τ/w²)^¼)`` (``tau``: 0-dim tensor, read live).

    With ``fuse`` its kernels are compiled by torch.compile.
    """

    form = "fading"

    def __init__(self, tau: Tensor, feedback: float = 0.0, fuse: bool = False) -> None:
        super().__init__(tau, feedback)
        self.fuse = fuse
        self._gone: float | None = None

    def mask(self, w: Tensor, out: Tensor | None) -> Tensor:
        masked, self._gone = faded(w, self.tau, out, self.fuse)
        return masked

    def step_(self, w: Tensor, grad: Tensor, count: bool) -> Tensor:
        masked = self._cached(w)  # the forward's own, unless it was compiled
        return faded_step_(w, grad, masked, self._gone, self.tau, self.fuse, self.feedback)


class HeldGate(FadingGate):
    """The same with the layer's norm held, ``v = k·w·relu(1 − (τ/w²)^¼)``, where no BatchNorm makes up for it.

    ``k`` (``factor``: 0-dim tensor, read live) is a constant to ``τ``, and left out for ``w``: a kept weight gets
    ``dL/dv``. With ``k`` times that, steps of ``v`` by gradient descent are ``k²`` times as large, and diverge.
    """

    form = "held"

    def __init__(self, tau: Tensor, factor: Tensor, feedback: float = 0.0, fuse: bool = False) -> None:
        super().__init__(tau, feedback, fuse)
        self.factor = factor
        self._squares: Tensor | None = None

    def mask(self, w: Tensor, out: Tensor | None) -> Tensor:
        masked, self._gone, self._squares = held(w, self.tau, self.factor, out, self.fuse)
        return masked

    def step_(self, w: Tensor, grad: Tensor, count: bool) -> Tensor:
        """Of the sums there are two more, Σ w² and Σ faded², from which ``k`` follows."""
        masked = self._cached(w)
        both = squares(w, masked / self.factor) if self._squares is None else self._squares
        stats = faded_step_(w, grad, masked, self._gone, self.tau, self.fuse, self.feedback, self.factor)
        return torch.cat([stats, both.to(stats)])

    def fold(self, w: Tensor, least: Tensor) -> Tensor:
        return super().fold(w, least) * self.factor


class ShrinkGate(HardGate):
    """Soft thresholding, ``v = c·sign(w)·relu(|w| − α)`` with ``α = √τ`` (``tau``: 0-dim tensor, read live).

    ``c`` is 1, or with ``rescale`` what `functional.shrink.rescaling` gives each output channel; it is a constant in
    the backward. The sum ``task`` is ``Σ g·sign(w)·1[|w| > α]``, so ``dL/dα = −task``.
    """

    def __init__(self, tau: Tensor, feedback: float = 0.0, rescale: bool = False) -> None:
        super().__init__(tau, feedback)
        self.form = "rescaled" if rescale else "soft"

    def mask(self, w: Tensor, out: Tensor | None) -> Tensor:
        shrunk = FORMS[self.form](w, self.tau)
        return shrunk if out is None else out.copy_(shrunk)

    def step_(self, w: Tensor, grad: Tensor, count: bool) -> Tensor:
        x = at_least_float32(w.detach())
        task = (at_least_float32(grad) * x.sign() * self.keeps(x)).sum()
        stats = super().step_(w, grad, count)
        return torch.cat([task.to(stats.dtype).view(1), stats[1:]])


class FixedGate(HardGate):
    """A mask that stands until its owner writes another: ``v = w`` where ``kept`` (bool, shape of ``w``, read live)."""

    def __init__(self, kept: Tensor, feedback: float = 0.0) -> None:
        super().__init__(torch.zeros(()), feedback)
        self.kept = kept

    def keeps(self, w: Tensor) -> Tensor:
        return self.kept
