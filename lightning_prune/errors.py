"""The errors of plans and of channel surgery. Each message names the value, what was expected, and the next step."""

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
