"""One way to say by name which parameters are meant."""

from __future__ import annotations

import pytest

from lightning_prune.errors import ChannelError
from lightning_prune.support.patterns import check_patterns, matches

NAME = "net.layer1.0.conv2.weight"


@pytest.mark.parametrize("pattern", [NAME, "net.layer1.0.conv2", "conv2", "conv2.weight", "layer1.*", "*.conv?", "w*"])
def test_a_pattern_is_a_parameter_or_a_module_whole_or_from_any_dot_on(pattern: str) -> None:
    assert matches(NAME, [pattern])
    assert matches(NAME, ["nothing", pattern])


@pytest.mark.parametrize("pattern", ["onv2", "layer1", "Conv2", "net.layer1", ""])
def test_parts_of_names_and_parents_are_not(pattern: str) -> None:
    assert not matches(NAME, [pattern])


def test_a_pattern_that_matches_nothing_is_named_with_its_neighbours() -> None:
    names = [NAME, "net.head.weight"]
    check_patterns(["head", "layer1.*"], names, "exclude", "weight")
    with pytest.raises(ChannelError, match=r"exclude pattern 'layer1.0.conv3' matches no weight.*conv2'"):
        check_patterns(["head", "layer1.0.conv3"], names, "exclude", "weight", ChannelError)
    with pytest.raises(ValueError, match=r"like 'net.layer1.0.conv2', 'net.head'\."):
        check_patterns(["qqq"], names, "include", "weight")
