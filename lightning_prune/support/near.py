"""Names that come near a misspelt one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """ "Did you mean a, b or c?" of the names nearest to a word, best first; empty if none is near.

    Args:
        word: what was written.
        known: what could have been meant.
        cutoff: least similarity, in [0, 1].
    """
    near = difflib.get_close_matches(word, list(known), n=3, cutoff=cutoff)
    return f"Did you mean {' or '.join(filter(None, (', '.join(near[:-1]), near[-1])))}?" if near else ""
