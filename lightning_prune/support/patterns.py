"""Name patterns: which parameters a user means by ``layer1.*`` or ``conv2``."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a parameter's name or its module's matches one of some fnmatch patterns, whole or from any dot on."""
    names = (name, name.rpartition(".")[0])
    return any(fnmatchcase(n, p) for pattern in patterns for n in names for p in (pattern, f"*.{pattern}"))


def check_patterns(
    patterns: Iterable[str], names: Sequence[str], argument: str, what: str, error: type[ValueError] = ValueError
) -> None:
    """Raises ``error`` for a pattern that matches none of some parameters (at least one), naming those that come near.

    ``argument`` is what the user calls the patterns, ``what`` what the parameters are, in the singular.
    """
    modules = [name.rpartition(".")[0] for name in names]
    for pattern in patterns:
        if not any(matches(name, (pattern,)) for name in names):
            near = difflib.get_close_matches(pattern, [*modules, *names], n=3, cutoff=0.3) or modules[:3]
            raise error(
                f"{argument} pattern {pattern!r} matches no {what}. Patterns are fnmatch on parameter or module "
                f"names, whole or from any dot on; names here are like {', '.join(map(repr, near))}."
            )
