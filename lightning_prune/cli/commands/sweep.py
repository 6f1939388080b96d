"""``lightning-prune sweep``: one fit for each of several targets, and what accuracy costs."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning_prune.cli.commands import fit
from lightning_prune.cli.mistakes import UserError
from lightning_prune.cli.models import RESULTS_FILE
from lightning_prune.cli.parser import pairs, value_of, without
from lightning_prune.cli.table import METRIC
from lightning_prune.support.table import Table, mib, percent

OPTIONS_FILE, TABLE_FILE, PLOT_FILE = "options.json", "sweep.csv", "sweep.png"

PAGE = """\
usage: lightning-prune sweep --prune.target_... V,V,V [options of fit]

Runs fit once for each value of one target, and shows accuracy against cost: a table, sweep.csv, and a plot where the
extra "plots" is installed. A target that is finished is not trained again: after an interruption give the same command.

  --prune.target_sparsity V,V,V   or another target of the method, or of --then: the values
  --out FOLDER              where the runs, sweep.csv and sweep.png go; default sweep
  all other options         those of fit, the same for each run; trained on one device

  lightning-prune sweep --prune.target_sparsity 0.8,0.9,0.95 --trainer.max_epochs 20
  lightning-prune sweep --prune MRTSCallback --prune.target_macs 0.7,0.5,0.3 --out macs
"""

_TARGET = re.compile(r"(prune|then)\.(init_args\.)?target_\w+")


def run(args: Sequence[str]) -> None:
    """Trains what is not finished, and shows the table."""
    option, values = _targets(args)
    if value_of(args, "trainer.devices") not in (None, "1"):
        raise UserError("sweep trains one target after the other on one device: give --trainer.devices to fit alone.")
    out, common = Path(value_of(args, "out") or "sweep"), without(args, "out", option)
    _check_same(out, [*common, f"--{option}"])
    name, found = option.rpartition(".")[2], {}
    for value in values:
        folder = out / f"{name}={value:g}"
        if not list(folder.rglob(RESULTS_FILE)):
            print(f"\n{name} {value:g}")
            own = [f"--{option}={value:g}", f"--trainer.default_root_dir={folder}", "--trainer.devices=1"]
            fit.run([*common, *own])
        found[value] = json.loads(next(iter(folder.rglob(RESULTS_FILE))).read_text())
    _write(out / TABLE_FILE, name, found)
    print(f"\n{table(name, found)}\n\nsaved {out / TABLE_FILE}")
    if find_spec("matplotlib") is not None:
        print(f"saved {_plot(out / PLOT_FILE, found)}")


def _targets(args: Sequence[str]) -> tuple[str, list[float]]:
    """The option that has several values, and those."""
    several = [(name, value) for name, value in pairs(args) if _TARGET.fullmatch(name) and "," in value]
    example = "such as --prune.target_sparsity 0.8,0.9,0.95"
    if len(several) != 1:
        names = ", ".join(f"--{name}" for name, _ in several) or "none"
        raise UserError(
            f"sweep needs one target with several values, {example}; with several values there are: {names}."
        )
    name, text = several[0]
    try:
        return name, [float(value) for value in text.strip("[]").split(",")]
    except ValueError:
        raise UserError(f"--{name} {text}: expected numbers, {example}.") from None


def _check_same(out: Path, options: list[str]) -> None:
    """Runs of a folder differ in their target alone: notes the other options there, or compares them."""
    file = out / OPTIONS_FILE
    if file.is_file():
        before = json.loads(file.read_text())
        if before != options:
            raise UserError(
                f"{out} holds a sweep with other options ({' '.join(before)}): give them again, or another --out."
            )
    out.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(options))


def _numbers(found: Mapping[str, Any]) -> dict[str, Any]:
    """What of a run's results the table has."""
    numbers = {"dense": found[METRIC][0], "pruned": found[METRIC][1], "compression": found["compression"]}
    return numbers | ({"macs": found["macs"]} if "macs" in found else {}) | {"bytes": found["bytes"][1]}


def table(name: str, found: Mapping[float, Mapping[str, Any]]) -> Table:
    """A row a target: accuracy of the dense and the pruned network, and what the pruned one costs."""
    shown = {
        "dense": percent, "pruned": percent, "compression": lambda x: f"{x:.2f}x", "macs": percent, "bytes": mib
    }  # fmt: skip
    titles = {"dense": f"dense {METRIC}", "pruned": f"pruned {METRIC}", "macs": "MACs left", "bytes": "file"}
    rows = [(f"{value:g}", _numbers(results)) for value, results in found.items()]
    heads = [titles.get(key, key) for key in rows[0][1]]
    return Table((name, *heads), [(value, *(shown[k](v) for k, v in row.items())) for value, row in rows])


def _write(path: Path, name: str, found: Mapping[float, Mapping[str, Any]]) -> None:
    rows = [{name: value, **_numbers(results)} for value, results in found.items()]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _plot(path: Path, found: Mapping[float, Mapping[str, Any]]) -> Path:
    """Accuracy of each pruned network against the MACs left, or its compression, and the mean of the dense ones."""
    from lightning_prune.plots import accuracy_against_compression

    rows = [_numbers(results) for results in found.values()]
    cost, said = ("macs", "share of MACs left") if "macs" in rows[0] else ("compression", "compression")
    dense = sum(row["dense"] for row in rows) / len(rows)
    points = [(row[cost], row["pruned"]) for row in rows]
    accuracy_against_compression({"pruned": points}, dense, said).savefig(path, dpi=150)
    return path
