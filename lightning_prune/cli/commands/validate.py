"""``lightning-prune validate``: loss and accuracy on the validation data."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_prune.cli.evaluation import OPTIONS, EvaluateCLI

PAGE = (
    """\
usage: lightning-prune validate [FILE] [options]

Loss and accuracy on the validation data, of the pruned weights: those of a checkpoint from the sparsify phase too.

"""
    + OPTIONS
    + """
  lightning-prune validate lightning_logs/version_0/pruned.safetensors
"""
)


class ValidateCLI(EvaluateCLI):
    """The command."""

    command = "validate"


def run(args: Sequence[str]) -> None:
    """Runs ``validate`` with these options."""
    ValidateCLI(args)
