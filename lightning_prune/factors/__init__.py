"""Low-rank factorisation: layers that become two, by hand (`factorize`) or learned in training (`FLOPCallback`)."""

from lightning_prune.factors.factorize import factorize, plan_factors
from lightning_prune.factors.units import FactorUnits

__all__ = ["FactorUnits", "factorize", "plan_factors"]
