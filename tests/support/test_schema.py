"""Strict JSON, and what counts as a number, a list, an object or a text of a file."""

from __future__ import annotations

import pytest

from lightning_prune.support.schema import as_json, is_count, is_int, is_list, is_object, is_text, parse

REFUSED = {
    '{"a": 1, "a": 1}': "twice",
    '{"a": {"b": 1, "b": 2}}': "twice",
    "[NaN]": "NaN is not JSON",
    "[-Infinity]": "-Infinity is not JSON",
    "[1e999]": "1e999 is not JSON",
    "[" * 100_000: "nested too deeply",
    b"\xff": "decode",
    "{": "Expecting",
    "": "Expecting",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_two_readers_could_read_differently_is_refused(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=REFUSED[text]):
        parse(text)
    assert parse('{"a": [1, null]}') == {"a": [1, None]}


def test_values_come_back_as_json_has_them() -> None:
    assert as_json({"a": (1, 2.5, None)}) == {"a": [1, 2.5, None]}
    for value in (float("nan"), {1, 2}, object()):
        with pytest.raises(ValueError, match="JSON"):
            as_json(value)


def test_checks_know_their_bounds() -> None:
    assert is_int(-1)
    assert not is_int(True)
    assert not is_int(1.0)
    assert [is_count(n, 3) for n in (-1, 0, 3, 4, True, "1", 2.0)] == [False, True, True, False, False, False, False]
    assert is_list([1, 2], is_int, most=2)
    assert not is_list([1, 2, 3], most=2)
    assert not is_list([1, "2"], is_int)
    assert not is_list((1, 2))
    assert is_object({"a": 1}, {"a"})
    assert not is_object({"a": 1, "b": 1}, {"a"})
    assert not is_object({"a": 1, "b": 1}, most=1)
    assert not is_object([])
    assert is_text("abc", 3)
    assert not is_text("abcd", 3)
    assert not is_text(b"abc", 3)
