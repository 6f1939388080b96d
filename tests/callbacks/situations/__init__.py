"""Ways to train, each a row of the table of behaviours; `cell.judge` runs one with a method."""

from __future__ import annotations

from tests.callbacks.methods import METHODS, removes_channels
from tests.callbacks.situations import beside, data, fits, networks, optimizing, ranks, standalone, steps, trainers
from tests.callbacks.situations.cell import Situation

SITUATIONS: dict[str, Situation] = {
    **optimizing.SITUATIONS,
    **trainers.SITUATIONS,
    **beside.SITUATIONS,
    **data.SITUATIONS,
    **networks.SITUATIONS,
    **fits.SITUATIONS,
    **steps.SITUATIONS,
    **standalone.SITUATIONS,
    **ranks.SITUATIONS,
}

_WEIGHTS = [name for name in METHODS if not removes_channels(name)]
_CHANNELS = [name for name in METHODS if removes_channels(name)]


def rotating() -> list[tuple[str, str]]:
    """(situation, method): each situation with a method that zeroes weights and one that cuts channels, in turn.

    What takes processes of its own has the latter alone; `test_ddp` has the others.
    """
    kinds = {s: (_CHANNELS,) if situation.judged else (_WEIGHTS, _CHANNELS) for s, situation in SITUATIONS.items()}
    return [(s, names[i % len(names)]) for i, s in enumerate(SITUATIONS) for names in kinds[s]]
