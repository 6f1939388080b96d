"""Name patterns: which parameters a user means by ``layer1.*`` or ``conv2``."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether one of some fnmatch patterns matches a parameter's name or its module's, whole or from any dot on.

    Args:
        name: full name of a parameter; its module's is what stands before the last dot.
        patterns: `"layer1.*"`, `"conv2"`, `"head.weight"`; case counts.
    """
    names = (name, name.rpartition(".")[0])
    return any(fnmatchcase(n, p) for pattern in patterns for n in names for p in (pattern, f"*.{pattern}"))


def check_patterns(
    patterns: Iterable[str], names: Sequence[str], argument: str, what: str, error: type[ValueError] = ValueError
) -> None:
    """Checks that every pattern matches one of some parameters.

    Args:
        patterns: what the user gave.
        names: full names of the parameters that are there; at least one.
        argument: what the user calls the patterns.
        what: what the parameters are, in the singular.

    Raises:
        error: a pattern matches none; the message names those that come near.
    """
    modules = [name.rpartition(".")[0] for name in names]
    for pattern in patterns:
        if not any(matches(name, (pattern,)) for name in names):
            near = difflib.get_close_matches(pattern, [*modules, *names], n=3, cutoff=0.3) or modules[:3]
            raise error(
                f"{argument} pattern {pattern!r} matches no {what}. Patterns are fnmatch on parameter or module "
                f"names, whole or from any dot on; names here are like {', '.join(map(repr, near))}."
            )
