"""Near names, in a sentence."""

from __future__ import annotations

import pytest

from lightning_prune.support.near import did_you_mean


@pytest.mark.parametrize(
    ("word", "known", "expected"),
    [
        ("resent18", ["resnet18", "resnet50", "vgg16"], "Did you mean resnet18?"),
        ("epoch", ["epochs", "epoch_", "steps"], "Did you mean epochs or epoch_?"),
        ("abcd", ["abcde", "abcdf", "abcdg", "abcdh"], "Did you mean abcdh, abcdg or abcdf?"),
        ("abcd", ["xyz"], ""),
        ("abcd", [], ""),
    ],
)
def test_the_nearest_names_are_asked_for(word: str, known: list[str], expected: str) -> None:
    assert did_you_mean(word, known) == expected


def test_names_that_are_far_from_the_nearest_are_left_out() -> None:
    assert did_you_mean("LTPCalback", ["LTPCallback", "STRCallback", "ST3Callback"]) == "Did you mean LTPCallback?"
