"""Among whom channel groups are ranked: all, those of their layer, or those of like structure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lightning_prune.channels.graph.propagate import operator_name
from lightning_prune.channels.select.units import ChannelUnits
from lightning_prune.errors import PlanError
from lightning_prune.scoring.base import Score

Scope = Literal["global", "layer", "isomorphic"]


def check_scope(scope: str) -> None:
    """Raise ValueError for an unknown scope."""
    if scope not in get_args(Scope):
        raise ValueError(f"scope={scope!r} must be one of {get_args(Scope)}.")


def importance(score: Score, units: ChannelUnits, values: Mapping[str, Tensor], scope: Scope = "global") -> Tensor:
    """What the channel groups go by, from the averages of `collect`: float64 [groups] on the CPU, see `ranked`.

    Raises:
        PlanError: the score has no value for any channel that may go.
    """
    found = score.combine(units, values).detach().double().cpu()
    if found.shape == units.free.shape and bool(units.free.any()) and not bool((found[units.free] < torch.inf).any()):
        raise PlanError(
            f"{type(score).__name__} has no value for any channel of {type(units.network).__name__} that may go; its "
            "description says what it needs. Use another score, such as 'l2' or 'taylor'"
        )
    return ranked(units, found, scope)


def ranked(units: ChannelUnits, score: Tensor, scope: Scope) -> Tensor:
    """What groups go by, the lowest first.

    Args:
        units: the channel groups.
        score: their importance, [groups], +inf where there is none.
        scope: "global": the score itself. "layer": the rank within the layer, so each loses the same share of its
            groups. "isomorphic": the rank within all layers of like structure (Fang et al., ECCV 2024, arXiv
            2407.04616, which ranks isomorphic sub-structures apart and prunes each kind by the same share).

    Returns:
        float64 [groups]; ranks are quantiles in (0, 1), +inf where there is no score.
    """
    check_scope(scope)
    if scope == "global":
        return score
    return quantiles(score, units.layer if scope == "layer" else structures(units))


def quantiles(score: Tensor, pool: Tensor) -> Tensor:
    """The quantile of each finite score in its pool, (rank + ½) / size.

    Args:
        score: [groups]; what is +inf stays so and does not count. Of equal scores the first is lower.
        pool: of each group, int64 [groups].

    Returns:
        float64 [groups].
    """
    out = torch.full_like(score, torch.inf, dtype=torch.float64)
    for identity in pool.unique():
        mine = ((pool == identity) & (score < torch.inf)).nonzero()[:, 0]
        ranks = torch.arange(len(mine), dtype=torch.float64)
        out[mine[score[mine].argsort(stable=True)]] = (ranks + 0.5) / max(len(mine), 1)
    return out


def structures(units: ChannelUnits) -> Tensor:
    """A number for each group, int64 [groups], the same for groups of like structure.

    Our reading of isomorphism: the same number of tensors of each kind, and the same number of sums of each kind over
    the group's channels. A tensor's kind is the class of its module, its name there, the dim that holds the channels,
    whether they are several (as in a head), and whether the module works in groups; a sum's is its operator. Widths and
    kernel sizes do not count. A residual stream is like another with as many blocks.
    """
    found = torch.zeros(units.size, dtype=torch.int64)
    modules: dict[str, Any] = dict(units.network.named_modules())
    members = [(_kind(modules, name, dim), ids) for name, dim, ids in units.graph.each()]
    members += [(f"{operator_name(place.node.target)} {place.argument}", place.ids) for place in units.graph.sums]
    for kind, ids in members:
        number = torch.bincount(ids[ids >= 0], minlength=units.size)
        for several, mine in ((False, number == 1), (True, number > 1)):
            # Sums of hashes do not depend on the order, and count.
            digest = hashlib.blake2b(f"{kind} {several}".encode(), digest_size=6).digest()
            found[mine] += int.from_bytes(digest, "big")
    return found


def _kind(modules: dict[str, Any], name: str, dim: int) -> str:
    path, _, attribute = name.rpartition(".")
    return f"{type(modules[path]).__name__} {attribute} {dim} {getattr(modules[path], 'groups', 1) > 1}"
