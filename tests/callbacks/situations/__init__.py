"""Ways to train, each a row of the table of behaviours; `cell.judge` runs one with a method."""

from __future__ import annotations

from tests.callbacks.situations import beside, data, fits, networks, optimizing, trainers
from tests.callbacks.situations.cell import Situation

SITUATIONS: dict[str, Situation] = {
    **optimizing.SITUATIONS,
    **trainers.SITUATIONS,
    **beside.SITUATIONS,
    **data.SITUATIONS,
    **networks.SITUATIONS,
    **fits.SITUATIONS,
}
