"""What to say of the candidates of a deployment: what helped, what did not, and why."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from lightning_prune.export.result import Candidate, fastest_of
from lightning_prune.support.table import ms

_LITTLE = 1.05  # a gain below that is none


def advice(
    candidates: Sequence[Candidate],
    dense: Sequence[Candidate],
    network: nn.Module,
    zeros: float,
    accuracy: float | None,
    max_drop: float,
) -> list[str]:
    """Lines about what helped.

    Args:
        candidates, dense: as measured.
        network: the network that was given.
        zeros: share of zeros among its prunable weights.
        accuracy: of the network itself, if it is known.
        max_drop: what may be lost of it.
    """
    return [
        *_of_pruning(candidates, dense, zeros),
        *_of_int8(candidates, network),
        *_of_accuracy(candidates, accuracy, max_drop),
    ]


def _of_pruning(candidates: Sequence[Candidate], dense: Sequence[Candidate], zeros: float) -> list[str]:
    found = []
    before, after = (fastest_of([c for c in group if c.precision == "fp32"]) for group in (dense, candidates))
    if before and after and before.seconds < _LITTLE * after.seconds:
        found.append(
            f"Pruning does not make this network faster here: in float32 the dense one takes {ms(before.seconds)}, the "
            f"pruned one {ms(after.seconds)}. Remove more channels, or align their counts (divisor=16)."
        )
    if zeros >= 0.1:
        found.append(
            f"{zeros:.0%} of the weights are zeros inside the tensors: they make packed files smaller, and no runtime "
            "here any faster. Removed channels do."
        )
    return found


def _of_int8(candidates: Sequence[Candidate], network: nn.Module) -> list[str]:
    grouped, convs = grouped_convolutions(network)
    found = []
    for full in (c for c in candidates if c.precision == "fp32"):
        slow = [
            f"{c.precision} ({ms(c.seconds)})"
            for c in candidates
            if c.runtime == full.runtime and c.precision in ("int8", "mixed") and full.seconds < _LITTLE * c.seconds
        ]
        if slow:
            found.append(f"No gain by {' and '.join(slow)} in {full.runtime}: fp32 takes {ms(full.seconds)}.")
    if found and grouped:
        found.append(f"{grouped} of {convs} convolutions are grouped or depthwise, and those gain little by int8.")
    return found


def grouped_convolutions(network: nn.Module) -> tuple[int, int]:
    """How many convolutions are grouped or depthwise, and how many there are."""
    convs = [m for m in network.modules() if isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Conv3d))]
    return sum(m.groups > 1 for m in convs), len(convs)


def _of_accuracy(candidates: Sequence[Candidate], accuracy: float | None, max_drop: float) -> list[str]:
    if accuracy is None:
        return ["Accuracy is unknown: no validation data was given. fp32 files compute what the network computes."]
    return [
        f"{c} loses {accuracy - c.accuracy:.2%} of accuracy, more than max_drop={max_drop:g}: not offered."
        for c in candidates
        if c.precision != "fp32" and c.accuracy is not None and c.accuracy < accuracy - max_drop
    ]
