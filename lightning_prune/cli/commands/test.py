"""``lightning-prune test``: loss and accuracy on the test data."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_prune.cli.evaluation import OPTIONS, EvaluateCLI

PAGE = (
    """\
usage: lightning-prune test [FILE] [options]

Loss and accuracy on the test data, of the pruned weights: those of a checkpoint from the sparsify phase too.

"""
    + OPTIONS
    + """
  lightning-prune test lightning_logs/version_0/pruned.safetensors
"""
)


class TestCLI(EvaluateCLI):
    """The command."""

    command = "test"


def run(args: Sequence[str]) -> None:
    """Runs ``test`` with these options."""
    TestCLI(args)
