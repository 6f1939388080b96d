"""Names that come near a misspelt one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_ABOUT_AS_NEAR = 0.1


def did_you_mean(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """The question "Did you mean a, b or c?", of the names nearest to a word; empty if none is near.

    Args:
        word: what was written.
        known: what could have been meant.
        cutoff: least similarity, in [0, 1].
    """
    near = difflib.get_close_matches(word, list(known), n=3, cutoff=cutoff)
    alike = [difflib.SequenceMatcher(None, name, word).ratio() for name in near]
    names = [name for name, ratio in zip(near, alike, strict=True) if ratio >= alike[0] - _ABOUT_AS_NEAR]
    return f"Did you mean {' or '.join(filter(None, (', '.join(names[:-1]), names[-1])))}?" if names else ""
