"""What is read off known runs: MACs and shares by hand."""

from __future__ import annotations

import pytest

from tests.benchmarks.kept_where import Kept, Layers


def test_macs_and_what_is_above_the_prior_by_hand() -> None:
    layers = Layers(["wide", "narrow"], [1000, 100], [1000, 9000], [0.02, 0.5])
    kept = Kept.of(layers, [0.05, 0.5])
    assert kept.macs == pytest.approx((50 + 4500) / 10_000)
    assert kept.above == {"wide": pytest.approx(50 / 100)}
    assert kept.prior == pytest.approx(20 / 100)
    assert not Kept.of(layers, layers.prior).above
    assert not Kept.of(Layers(["a"], [100], [100], [0.001]), [0.01]).above  # a floor, not a choice


def test_a_stem_has_the_macs_of_its_positions() -> None:
    layers = Layers.of("smoke", 0.2)
    assert layers.macs[0] == layers.numels[0] * 8 * 8
    assert layers.macs[-1] == layers.numels[-1]
    kept = sum(n * p for n, p in zip(layers.numels, layers.prior, strict=True))
    assert kept / sum(layers.numels) == pytest.approx(0.2)
