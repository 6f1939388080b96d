"""Plots of weights, costs, trade-offs and histories: what is drawn, read back from the artists."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from lightning_prune import plots, sparsity_report
from tests.toy import network


def heights(ax: object) -> list[float]:
    return [bar.get_height() for bar in ax.patches]  # type: ignore[attr-defined]


def test_each_layer_has_its_sparsity_and_its_threshold() -> None:
    model = network()
    with torch.no_grad():
        model[3].weight.flatten()[: model[3].weight.numel() // 4] = 0  # type: ignore[union-attr, operator]
    figure = plots.layer_sparsity(model, {"3.weight": 0.01})
    bars, taus = figure.axes
    assert heights(bars) == [0, 0.25, 0]
    assert bars.lines[0].get_ydata()[0] == sparsity_report(model).sparsity
    assert taus.lines[0].get_xydata().tolist() == [[1, 0.01]]
    assert [label.get_text() for label in taus.get_xticklabels()] == ["0.weight", "3.weight", "8.weight"]
    assert taus.get_yscale() == "log"
    alone = plots.layer_sparsity({"a": 0.5, "b": 1.0})
    assert [heights(ax) for ax in alone.axes] == [[0.5, 1.0]]


def test_weights_before_stand_against_those_after() -> None:
    before = {"a": torch.linspace(-1, 1, 50_000), "b": torch.ones(2, 2)}
    after = {"a": before["a"] * (before["a"].abs() > 0.5), "b": 2 * before["b"]}
    figure = plots.weights_before_after(before, after, {"a": 0.25})
    a, b = figure.axes
    points = torch.from_numpy(a.lines[0].get_xydata())
    assert len(points) == 20_000
    assert (points[:, 0].min(), points[:, 0].max()) == (-1, 1)
    inside = points[:, 0].abs() <= 0.5
    assert (points[inside, 1] == 0).all()
    assert torch.equal(points[~inside, 0], points[~inside, 1])
    assert [line.get_xdata()[0] for line in a.lines[1:]] == [-0.5, 0.5]
    assert b.lines[0].get_xydata().tolist() == [[1, 2]] * 4
    assert len(b.lines) == 1


METRICS = """epoch,step,prune/kept,prune/layer/conv.weight/tau,prune/layer/fc.weight/sparsity,train/loss,val/acc
0,4,1.0,,,2.5,
0,9,0.5,0.001,,,
0,9,,,0.25,,0.75
1,14,0.1,0.002,0.9,0.4,
"""


def test_a_csv_loggers_file_is_read_back(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(METRICS)
    series = plots.read_metrics(tmp_path)
    assert series["prune/kept"] == [(4, 1), (9, 0.5), (14, 0.1)]
    assert series["val/acc"] == [(9, 0.75)]
    figure = plots.from_metrics(tmp_path / "metrics.csv")
    shares, taus, zeros = figure.axes
    assert {line.get_label(): line.get_xydata().tolist() for line in shares.lines} == {
        "kept": [[4, 1], [9, 0.5], [14, 0.1]],
        "val/acc": [[9, 0.75]],
    }
    assert [line.get_linestyle() for line in shares.lines] == ["-", "--"]
    assert taus.lines[0].get_xydata().tolist() == [[9, 0.001], [14, 0.002]]
    assert (taus.get_yscale(), zeros.get_yscale()) == ("log", "linear")
    assert zeros.lines[0].get_label() == "fc.weight"


def test_accuracy_against_compression_of_pairs_and_of_a_trail() -> None:
    @dataclass
    class Entry:
        kept: float
        score: float | None
        metric: str | None = "val/acc"

    @dataclass
    class Entries:
        entries: list[Entry]

    trail = Entries([Entry(0.5, 0.9), Entry(0.1, 0.8), Entry(0.2, None)])
    figure = plots.accuracy_against_compression({"LTP": trail, "mine": [(4.0, 0.7), (2.0, 0.8)]}, dense=0.95)
    (ax,) = figure.axes
    assert [line.get_xydata().tolist() for line in ax.lines[:2]] == [[[2, 0.9], [10, 0.8]], [[2, 0.8], [4, 0.7]]]
    assert ax.lines[2].get_ydata()[0] == 0.95
    assert (ax.get_ylabel(), ax.get_xscale()) == ("val/acc", "log")
    assert [line.get_label() for line in plots.accuracy_against_compression(trail).axes[0].lines] == ["trail"]


def test_costs_are_bars_of_shares_with_their_numbers() -> None:
    @dataclass
    class Costs:
        parameters: int
        seconds: float | None
        name: str = "a network"

    figure = plots.cost_bars({"parameters": 2_000, "MACs": 5e6}, {"parameters": 500, "MACs": 7e6, "other": 1})
    (ax,) = figure.axes
    assert heights(ax) == [1, 1, 0.25, 1.4]
    assert [text.get_text() for text in ax.texts] == ["2 k", "5 M", "500", "7 M"]
    assert heights(plots.cost_bars(Costs(10, None), Costs(5, 1.0)).axes[0]) == [1, 0.5]
    report = sparsity_report(network())
    assert heights(plots.cost_bars(report, report).axes[0]) == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plots.layer_sparsity({}), "no layer to plot"),
        (lambda: plots.weights_before_after({"a": torch.ones(2)}, {"a": torch.ones(3)}), r"\(2,\)\}, \{'a': \(3,\)"),
        (lambda: plots.over_time({"val/acc": [(0, 1.0)]}), "'prune/': \\['val/acc'\\]"),
        (lambda: plots.accuracy_against_compression({"a": []}), r"none of \['a'\]"),
        (lambda: plots.cost_bars({"a": 1.0}, {"b": 1.0}), "a name in common"),
        (lambda: plots.cost_bars({"a": 0.0}, {"a": 1.0}), "positive numbers before"),
    ],
)
def test_nothing_to_draw_is_said(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]


def test_files_that_are_no_loggers_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "metrics.csv")):
        plots.from_metrics(tmp_path)
    (tmp_path / "metrics.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"columns \['a', 'b'\] and no 'step'"):
        plots.from_metrics(tmp_path)


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "lightning-prune\[plots\]"'):
        plots.layer_sparsity({"a": 0.5})


def test_a_notebook_shows_a_plot_without_pyplot() -> None:
    assert plots.layer_sparsity({"a": 0.5})._repr_png_().startswith(b"\x89PNG")


def test_no_plot_uses_pyplot() -> None:
    for path in Path(plots.__file__).parent.glob("*.py"):
        assert "matplotlib.pyplot" not in path.read_text()


def test_the_pages_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "docs" / "plots.md").read_text()
    code = text.split("<!-- runs -->\n```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert {file.stem for file in tmp_path.iterdir()} == {"graph", "weights", "layers", "costs", "scales", "tradeoff"}
    for name in plots.__all__:
        assert f"plots.{name}" in text
