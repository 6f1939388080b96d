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

_CHANNELS = [name for name in METHODS if removes_channels(name)]


def third() -> list[tuple[str, str]]:
    """(situation, method) of a third of the table: every third method, from another one on in each situation.

    What takes seconds has two methods, and what takes processes of its own one; `test_ddp` has the others.
    """
    cells = []
    for number, (name, situation) in enumerate(SITUATIONS.items()):
        methods = [*METHODS][number % 3 :: 3]
        if situation.slow:
            methods = [methods[number % len(methods)], _CHANNELS[number % len(_CHANNELS)]]
        cells += [(name, method) for method in ([_CHANNELS[number % len(_CHANNELS)]] if situation.judged else methods)]
    return cells
