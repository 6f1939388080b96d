"""Plans that are wrong by one channel."""

from __future__ import annotations

import random
from dataclasses import replace

from lightning_prune.plan.plan import PruningPlan


def broken(plan: PruningPlan, training: bool) -> list[PruningPlan]:
    """The plan with one kept index of one dim of one tensor swapped for a removed one, for each such dim.

    In train mode not of averages, which are not read then.
    """
    draw, found = random.Random(0), []
    for name, cut in plan.cuts.items():
        if training and "running" in name:
            continue
        for dim, kept in cut.kept.items():
            gone = draw.choice([i for i in range(cut.shape[dim]) if i not in kept])
            swapped = sorted({*kept, gone} - {draw.choice(kept)})
            found.append(replace(plan, cuts=plan.cuts | {name: replace(cut, kept=cut.kept | {dim: tuple(swapped)})}))
    return found
