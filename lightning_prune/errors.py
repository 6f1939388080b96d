"""All public exceptions. Each message names the value, what was expected, and the next step."""

from __future__ import annotations


class ChannelError(ValueError):
    """Base of every error raised by `lightning_prune.channels` and by `PruningPlan`."""


class TraceError(ChannelError):
    """The model cannot be turned into a channel graph."""


class PlanError(ChannelError):
    """A plan (or the request it is made from) does not fit the model."""


class TargetError(PlanError):
    """A target (a share of MACs, parameters or channels) cannot be met; nothing was changed."""


class SurgeryError(ChannelError):
    """The sliced model does not compute what the masked model computes; the model was put back as it was."""


class CalibrationError(RuntimeError):
    """The module could not be run on a training batch; the network's own exception is the cause."""


class DivergenceError(RuntimeError):
    """Weights are NaN or infinite, so nothing tells which of them matter."""


class BudgetError(ValueError):
    """A budget of kept weights that cannot be met under the per-layer floors."""


class PhaseError(ValueError):
    """Phases that do not fit the training."""


class PrunedFileError(ValueError):
    """A file, or what is to be written to one, is not what it has to be; the message says where, what and what next."""


class RecipeError(ValueError):
    """The name or the arguments are not fit to build a model from; the message says which and why."""


class ExportError(RuntimeError):
    """A network cannot be exported, or what was exported does not compute the same; nothing was written."""
