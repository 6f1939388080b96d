"""ST-3 as a callback: one magnitude threshold that softens what it cuts, gradients straight through."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_prune.callbacks.methods.weights.magnitude import MagnitudeCallback
from lightning_prune.callbacks.options import options_of
from lightning_prune.callbacks.phases import Duration
from lightning_prune.masks import Gate, ShrinkGate
from lightning_prune.masks.units import WeightUnits


class ST3Callback(MagnitudeCallback):
    """ST-3: soft thresholding with straight-through gradients (Vanderschueren & De Vleeschouwer, arXiv 2212.01076).

    One threshold α on ``|w|`` for the whole network follows the cubic path of `MagnitudeCallback`. The network uses
    ``c·sign(w)·relu(|w| − α)``, where c gives each output channel the mass back that it has lost; the gradient reaches
    all weights unchanged. At the hard prune that becomes the weight.

    From the authors' code: c and its bound, the threshold over all layers, updates as frequent as steps. Ours: at most
    500 updates in the phase (theirs: every step), the path is reached at 85 % of it and then level, ``min_keep``, and
    the final cut at the weights of that moment. Their second variant, ST-3-σ, is not here.

    Args:
        target_sparsity: share of weights to prune; 0.9 if no target is given.
        feedback: share of their gradient that pruned weights get in the sparsify phase, in [0, 1]; 1 is ST-3.
        target_compression: the same as prunable weights / non-zero ones, ≥ 1; give one of the targets.
        target_macs: share of the network's sparse MACs that may be left, in (0, 1), see `WeightTarget`.
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

    updates = 500
    form = "rescaled"

    def __init__(
        self,
        target_sparsity: float | None = None,
        feedback: float = 1.0,
        target_compression: float | None = None,
        target_macs: float | None = None,
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
        super().__init__(**options_of(MagnitudeCallback, locals()))

    def gates(self, units: WeightUnits) -> dict[str, Gate]:
        taus = zip(units.names, self.thresholds().unbind(), strict=True)
        return {name: ShrinkGate(tau, self.feedback, rescale=True) for name, tau in taus}
