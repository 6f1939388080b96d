"""The user's choices that change which channels are tied."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from lightning_prune.errors import ChannelError

APPROXIMATIONS = ("eca",)


@dataclass(frozen=True)
class Options:
    """The user's choices that change which channels are tied.

    Attributes:
        groups: "tie" removes the same position from all groups of a grouped conv, "whole" removes whole groups.
        attention: "dims" ties heads and removes the same dimensions from each, "heads" removes whole heads.
        allow_inexact: names of approximations that the user accepts ("eca").
    """

    groups: str = "tie"
    attention: str = "dims"
    allow_inexact: frozenset[str] = frozenset()


def check_options(groups: str, attention: str, allow_inexact: Collection[str]) -> Options:
    """Returns the options, or says which value is wrong and what is allowed."""
    if groups not in ("tie", "whole"):
        raise ChannelError(f"groups={groups!r}: expected 'tie' or 'whole'")
    if attention not in ("dims", "heads"):
        raise ChannelError(f"attention={attention!r}: expected 'dims' or 'heads'")
    unknown = sorted(set(allow_inexact) - set(APPROXIMATIONS))
    if unknown or isinstance(allow_inexact, str):
        raise ChannelError(f"allow_inexact={allow_inexact!r}: expected a collection out of {APPROXIMATIONS}")
    return Options(groups, attention, frozenset(allow_inexact))
