"""What removed channels leave behind: constants, added to the biases behind them, and the proof of that."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lightning_prune.channels.analysis.constants import constants
from lightning_prune.channels.graph.graph import ChannelGraph
from lightning_prune.channels.verify.compare import check_same, graph_runner, run
from lightning_prune.errors import SurgeryError
from lightning_prune.plan.plan import PruningPlan


def fold_constants(
    model: nn.Module, graph: ChannelGraph, keep: Tensor, example_input: Any, *, silence: bool
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """What the constants of removed channels add to the biases behind them.

    Args:
        keep: bool [groups], what stays.
        silence: whether the scale factors of what goes count as zero; else only what is constant as it is folds.

    Returns:
        ({tensor name: what to add}, notes on what does not fold exactly)
    """
    behind = constants(model, graph, example_input, fold=True, removed=~keep, silence=silence)
    if not behind.inexact:
        return behind.folds, ()
    more = f", and in {len(behind.inexact) - 1} more places" if len(behind.inexact) > 1 else ""
    return behind.folds, (f"constants not folded exactly: {behind.inexact[0]}{more}",)


def check_folded(
    model: nn.Module,
    graph: ChannelGraph,
    plan: PruningPlan,
    folds: dict[str, Tensor],
    example_input: Any,
    programs: Any,
    *,
    lossless: bool,
) -> tuple[str, ...]:
    """Compares what a plan leaves, constants folded, with the model as it is.

    Args:
        programs: the rewritten graphs, in the form "graph".
        lossless: whether both have to be equal; else the removed scale factors count as zero in the reference.

    Returns:
        a note on how close they are, unless they are equal.

    Raises:
        SurgeryError: they have to be equal and are not.
    """
    norms = [f"{path}.weight" for path in graph.norms if f"{path}.weight" in plan.cuts]
    zeroed = [] if lossless else [name for name in norms if 0 in plan.cuts[name].kept]
    same = check_same(model, plan, folds, example_input, graph_runner(programs) if programs else run, zeroed)
    within = f"within {same.difference:.1e} of the model with zero scale factors"
    if not lossless:
        return (f"with the constants folded, the output is {within}",)
    # A folded constant is stored in the model's own dtype, so it can be no more exact than that.
    if not (same.equal or (folds and same.difference < 1e-6)):
        raise SurgeryError(
            f"removing dead channels changes the output by {same.difference:.1e} "
            f"(tolerance {same.tolerance:.0e}). The model is unchanged; please report this model"
        )
    return ()
