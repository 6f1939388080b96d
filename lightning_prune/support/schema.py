"""Strict JSON, and checks of what stands in it. Callers raise their own errors, so that these can say where."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection
from typing import Any, NoReturn, TypeGuard


def parse(text: str | bytes) -> Any:
    """Reads JSON that every reader reads alike: no key twice, no NaN or infinity, nor a number that becomes one.

    Raises:
        ValueError: it is none.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_finite)
    except RecursionError as error:
        raise ValueError(f"it is nested too deeply: {error}") from error


def as_json(value: Any) -> Any:
    """A value as it comes back from JSON: tuples are lists.

    Raises:
        ValueError: it holds something that JSON has not.
    """
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, RecursionError) as error:
        raise ValueError(str(error)) from error


def is_int(value: Any) -> TypeGuard[int]:
    """A whole number; a bool is none here."""
    return type(value) is int


def is_count(value: Any, most: int) -> TypeGuard[int]:
    """A whole number from 0 to `most`."""
    return is_int(value) and 0 <= value <= most


def is_text(value: Any, most: int) -> TypeGuard[str]:
    """A text of at most so many characters."""
    return isinstance(value, str) and len(value) <= most


def is_list(value: Any, items: Callable[[Any], bool] | None = None, most: int | None = None) -> TypeGuard[list[Any]]:
    """A list of at most `most` items, which all pass a check."""
    return (
        isinstance(value, list)
        and (most is None or len(value) <= most)
        and (items is None or all(items(item) for item in value))
    )


def is_object(value: Any, fields: Collection[str] | None = None, most: int | None = None) -> TypeGuard[dict[str, Any]]:
    """An object with exactly these fields, or of at most `most` ones."""
    return (
        isinstance(value, dict)
        and (fields is None or value.keys() == set(fields))
        and (most is None or len(value) <= most)
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):  # two readers could see two different files
        raise ValueError("a key comes twice")
    return out


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse(text[:100])


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")
