"""What the page of the article's ablations says of a run."""

from __future__ import annotations

import pytest
import torch

from tests.benchmarks.article import KEPT, Point, Watch, at_shares, near


def test_accuracy_at_a_kept_share_lies_between_the_epochs_around_it() -> None:
    points = [Point(accuracy, kept, 0.0, 0.0) for accuracy, kept in [(90, 75), (80, 65), (82, 61), (70, 41)]]
    found = dict(zip(KEPT, at_shares(points), strict=True))
    assert found[0.7] == pytest.approx(85)
    assert found[0.6] == pytest.approx(82 - 12 / 20)
    assert found[0.4] is None


def test_weights_at_the_threshold_are_counted_on_both_sides() -> None:
    watch = Watch()
    watch.tau, watch.weights = 0.04, torch.tensor([0.2, -0.201, 0.19, 0.21, 0.0, 1.0])
    assert near(watch)[1] == pytest.approx(2 / 4)
