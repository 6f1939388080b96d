"""STR as a callback: one soft threshold a layer, learned by gradient descent against a pull that raises it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_prune.callbacks.methods.weights.thresholds import ThresholdPruning, share_of_gradient
from lightning_prune.callbacks.options import options_of
from lightning_prune.callbacks.phases import Duration
from lightning_prune.functional import budget, ltp
from lightning_prune.functional.adam import BETAS, adam_step_
from lightning_prune.functional.schedules import exponential_path, settling
from lightning_prune.masks import Gate, ShrinkGate
from lightning_prune.masks.ltp import KEPT, TASK
from lightning_prune.masks.units import WeightUnits

_TOP = 10.0  # the highest threshold, in units of the layer's root mean square
_START = 0.05  # the first one: 4 % of Gaussian weights lie below
_PULL = 0.1  # the first λ where it is steered: half the size of dL/ds at the first threshold
_REFRESHES = 20  # times in the phase that the highest allowed thresholds are measured anew
_HOLD = 0.3  # share of the phase at its end in which the target is held
_TRAVEL = 3.0  # s can travel this many times the distance to the target
_GAIN, _DAMPING = 20.0, 20.0  # of the controller of the pull: integral over the whole phase, and proportional
_STABLE = 0.4  # damping times step: in short phases, with long steps, more would swing around the path


class STRCallback(ThresholdPruning):
    """Soft Threshold Reparameterization (Kusupati et al., ICML 2020, arXiv 2002.03231) on any LightningModule.

    While sparsifying, the network uses ``sign(w)·relu(|w| − α)`` with one learned threshold ``α = 10·σ·sigmoid(s)`` a
    layer; at the hard prune that becomes the weight. Weights and s follow their exact gradients; the pull λ, the
    paper's weight decay on s, raises all thresholds, and the loss holds back those that cost most.

    With a target, λ is steered so that the kept share follows an exponential path to it, and one common factor on all
    thresholds meets it to the weight. Without one, ``lam`` decides, as in the paper.

    Ours: σ, the layer's root mean square when the phase begins, so that one setting serves layers of every scale (the
    paper has ``α = sigmoid(s)`` from ``s = −3200`` or so, where a long decay must come first); the start at
    ``α = 0.05·σ``; Adam for s in place of the network's SGD; λ in units of the layers' root mean square ``dL/ds``,
    so that the loss and a pull that is strong enough to track a path stay of one size.

    Args:
        target_sparsity: share of weights to prune; 0.9 if no target and no ``lam`` is given.
        lam: the pull λ in ``λ·s``, in units of the size of ``dL/ds``; where it is steered, its start.
        threshold_lr: step of s; None: three times the way to the target over the phase's steps.
        feedback: share of their gradient that weights below the threshold get, in [0, 1]; 0 is the paper's.
        target_compression: the same as prunable weights / non-zero ones, ≥ 1; give one of the two.
        warmup: dense training first. An int counts epochs, a float is a share of the training, "300 steps" steps.
        sparsify: training under the masks, up to the hard prune; as ``warmup``.
        finetune: training after the prune; None takes what is left.
        include: fnmatch patterns on parameter or module names, whole or from any dot on; None takes every conv and
            linear weight.
        exclude: patterns of weights to leave dense.
        skip_first: leave the stem dense.
        skip_last: leave the classifier dense.
        min_keep: least share of each layer's weights to keep.
        recalibrate_batches: training batches on which BatchNorm statistics are re-estimated after the prune; 0: none.
        max_gap: warn if accuracy on those batches falls by more than this from the soft to the hard network.
        trail: kept shares at which an ordinary checkpoint is saved, e.g. ``[0.5, 0.2, 0.1]``.
        trail_dir: folder of the trail; default ``<log dir>/trail``.
        trail_metric: validation metric noted in the trail; default the first ``val*acc*`` or ``val*`` that is logged.
        histogram_every: epochs between weight histograms, for loggers that take them; 0: never.

    Raises:
        ValueError: an argument out of its range.
    """

    form = "soft"

    def __init__(
        self,
        target_sparsity: float | None = None,
        lam: float | None = None,
        threshold_lr: float | None = None,
        feedback: float = 0.0,
        target_compression: float | None = None,
        warmup: Duration = 0,
        sparsify: Duration = 0.6,
        finetune: Duration | None = None,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] | None = None,
        skip_first: bool = False,
        skip_last: bool = False,
        min_keep: float = 0.01,
        recalibrate_batches: int = 20,
        max_gap: float = 0.05,
        trail: Sequence[float] | None = None,
        trail_dir: str | None = None,
        trail_metric: str | None = None,
        histogram_every: int = 0,
    ) -> None:
        if target_sparsity is None and target_compression is None and lam is None:
            target_sparsity = 0.9
        super().__init__(**options_of(ThresholdPruning, locals()))
        if lam is not None and lam < 0:
            raise ValueError(f"lam={lam} must not be negative: it is the pull that raises thresholds.")
        if threshold_lr is not None and threshold_lr <= 0:
            raise ValueError(f"threshold_lr={threshold_lr} must be positive, or None for the way to the target.")
        self.lam, self.threshold_lr = lam, threshold_lr
        self.feedback = share_of_gradient(feedback, 0.0)

    def start(self, units: WeightUnits) -> None:
        super().start(units)
        self._top = _TOP * torch.stack([w.square().mean().sqrt() for w in units.weights()]).float().clamp_min(1e-6)
        self._s = torch.full_like(self._top, _START / _TOP).logit()
        self._tau, self._mean, self._square, self._count = (torch.zeros_like(self._top) for _ in range(4))
        self._cap = torch.full_like(self._top, torch.inf)
        self._size = torch.zeros((), device=self._top.device)
        self._log_price = self._top.new_tensor(_PULL if self.lam is None else self.lam).clamp_min(1e-30).log()
        self._steps = torch.zeros((), dtype=torch.int64)
        self._tau.copy_((self._top * self._s.sigmoid()).square())

    def gates(self, units: WeightUnits) -> dict[str, Gate]:
        return {name: ShrinkGate(tau, self.feedback) for name, tau in zip(units.names, self._tau.unbind(), strict=True)}

    def thresholds(self) -> Tensor:
        return self._tau

    def tensors(self) -> dict[str, Tensor]:
        return super().tensors() | {
            "s": self._s, "tau": self._tau, "top": self._top, "mean": self._mean, "square": self._square,
            "count": self._count, "cap": self._cap, "size": self._size, "log_price": self._log_price,
            "steps": self._steps,
        }  # fmt: skip

    @property
    def price(self) -> Tensor:
        """λ, the pull on s in units of the size of ``dL/ds``; a scalar."""
        if self.target_sparsity is None:
            return self._log_price.exp()
        damping = min(_DAMPING, _STABLE / self._full_step())
        return budget.steered_price(self._log_price, self._kept(), self._goal(), damping)

    def learn(self, stats: Tensor, active: Tensor) -> None:
        if int(self._steps) % max(1, self.sparsify_steps // _REFRESHES) == 0:
            self._cap.copy_(self.highest_thresholds())
        open_share = self._s.sigmoid()
        slope = self._top * open_share * (1 - open_share)  # dα/ds
        grad = -slope * stats[:, TASK].float()
        size = torch.where(active, grad.square(), torch.zeros_like(grad)).sum() / active.sum().clamp_min(1)
        # From 0 on, uncorrected: the pull sets in gently.
        self._size.copy_(torch.where(active.any(), torch.lerp(size, self._size, BETAS[1]), self._size))
        pull = self.price * self._size.sqrt() * self._s
        adam_step_(self._s, grad + pull, self._mean, self._square, self._count, active, self._step_size())
        if self.target_sparsity is not None:
            gain = min(_GAIN / self.sparsify_steps, 0.2)
            self._log_price.copy_(budget.steer(self._log_price, self._kept(), self._goal(), gain))
        self._steps += 1
        self._tau.copy_(torch.minimum((self._top * self._s.sigmoid()).square(), self._cap))

    def metrics(self) -> dict[str, Tensor | float]:
        return super().metrics() | {"lambda": self.price}

    def _kept(self) -> Tensor:
        return (self.stats[:, KEPT].sum() / self.units.numel).float()

    def _goal(self) -> float:
        assert self.target_sparsity is not None
        return exponential_path(self.progress, 1 - self.target_sparsity, _HOLD)

    def _full_step(self) -> float:
        if self.threshold_lr is not None:
            return self.threshold_lr
        alpha = ltp.gaussian_threshold(self.target_sparsity if self.target_sparsity is not None else 0.9) ** 0.5
        ends = torch.tensor([_START, max(alpha, 2 * _START)]).div(_TOP).logit()
        return min(_TRAVEL * float(ends[1] - ends[0]) / self.sparsify_steps, 0.3)

    def _step_size(self) -> float:
        if self.threshold_lr is not None:
            return self.threshold_lr
        return settling(self.progress, _HOLD) * self._full_step()
