"""One table for all results: as text in columns, as HTML with nothing in it that is not escaped."""

from __future__ import annotations

import pytest
import torch

from lightning_prune import prune_channels, sparsity_report
from lightning_prune.support.latency import interleaved
from lightning_prune.support.table import Shown, Table, mib, ms, percent
from tests.toy import network


def test_columns_are_aligned_and_the_total_stands_apart() -> None:
    table = Table(
        ("name", "n"), [("a", "1"), ("long name", "1,000"), ("sum", "1,001")], ["above"], ["below"], total=True
    )
    assert str(table).splitlines() == [
        "above",
        "name           n",
        "----------------",
        "a              1",
        "long name  1,000",
        "----------------",
        "sum        1,001",
        "below",
    ]


def test_html_is_escaped() -> None:
    html = Table(("<b>", "x"), [("a & b", "1")], ["<i>"], ["c < d"])._repr_html_()
    assert html == (
        "<p>&lt;i&gt;</p>"
        "<table><thead><tr><th style=text-align:left>&lt;b&gt;</th><th style=text-align:right>x</th></tr></thead>"
        "<tbody><tr><td style=text-align:left>a &amp; b</td><td style=text-align:right>1</td></tr></tbody></table>"
        "<p>c &lt; d</p>"
    )


def test_results_are_shown_alike_in_both_forms() -> None:
    net = network()
    pruned = prune_channels(net, torch.randn(2, 1, 8, 8), keep={"1.weight": range(4)}, verify=False)
    for result in (sparsity_report(net), pruned):
        assert isinstance(result, Shown)
        assert str(result) == str(result.table())
        for row in result.table().rows:
            assert all(f">{cell}<" in result._repr_html_() for cell in row)
    assert "MACs" in str(pruned)
    assert str(pruned.plan) in str(pruned)


def test_units() -> None:
    assert (mib(None), ms(None), percent(None)) == ("-", "-", "-")
    assert (mib(2**19), ms(0.00125), percent(0.5)) == ("0.50 MiB", "1.25 ms", "50.00%")


def test_calls_are_timed_in_turn_to_and_fro() -> None:
    seen: list[str] = []
    times = interleaved([lambda: seen.append("a"), lambda: seen.append("b")], rounds=2)
    assert "".join(seen) == "baabba"
    assert [len(t) for t in times] == [2, 2]
    with pytest.raises(ZeroDivisionError):
        interleaved([lambda: 1 / 0], rounds=1)
