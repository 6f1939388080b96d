"""Low rank without learning which: the components of least singular value go."""

from __future__ import annotations

from torch import Tensor

from lightning_prune.callbacks.families.factors import FactorPruning
from lightning_prune.factors.units import FactorUnits


class SVDCallback(FactorPruning):
    """Truncated singular value decomposition in mid-fit (Eckart & Young 1936; Denil et al. 2013, arXiv 1306.0543).

    The sparsify phase trains the dense network; at its end components stay by their share of their layer's squared norm
    (`FactorUnits.energies`), and the rest of the training finetunes the two layers that each weight has become. The
    plain alternative to `FLOPCallback`, and what that has to beat. Arguments: see `FactorPruning`.
    """

    def score(self, units: FactorUnits) -> Tensor:
        return units.energies()
