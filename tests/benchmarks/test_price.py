"""LTP by its price alone: the rival gets the share that LTP found, and the stations are tested."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from tests.benchmarks.bench.runs import Run
from tests.benchmarks.price import page, work


def test_a_price_decides_what_is_kept_and_the_rival_keeps_as_much(tmp_path: Path) -> None:
    run = Run("smoke", "LTP", 1, 0, 400, 1, 3, 1)
    cheap, dear = (work(run, price, None, "", tmp_path) for price in (0.1, 1000.0))
    assert dear["kept"] < cheap["kept"] < 1
    assert dear["stations"] == sorted(dear["stations"], reverse=True)
    assert dear["kept"] <= dear["stations"][0][0] <= 0.5
    rival = work(run, 1000.0, dear["kept"], "", tmp_path)
    assert rival["kept"] == pytest.approx(dear["kept"], abs=1e-3)
    stamp = {"date": "2026-01-01", "revision": "a", "versions": "b"}
    found = {1000.0: {"LTP": {0: dear | stamp, 1: dear | stamp}, "magnitude": {0: rival | stamp, 1: rival | stamp}}}
    text = page(found, argparse.Namespace(network="smoke", subset=400))
    assert f"| 1000 | 2 | {dear['kept']:.1%} | {dear['accuracy']:.2f} | {rival['accuracy']:.2f} |" in text
