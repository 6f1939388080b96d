"""Does every method keep its promises in every way to train?

    python -m tests.benchmarks.behaviours --out tests/benchmarks/behaviours.md

Each cell is a short fit of the toy network, see `tests.callbacks.situations`: the budget is met, zeros and shapes
hold, what is left trains, checkpoints are plain, and nothing is left behind; or the fit is refused before its first
batch. Cells that `results/behaviours.jsonl` holds are not run again, but for those that failed.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import tempfile
import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.bench.command import RESULTS
from tests.benchmarks.bench.pipelines import publish
from tests.benchmarks.bench.runs import Locked, circumstances
from tests.callbacks.methods import METHODS
from tests.callbacks.situations import SITUATIONS, third
from tests.callbacks.situations.cell import judge

Key = tuple[str, str]  # situation, method

INTRODUCTION = (
    "# Every method in every way to train",
    "",
    "A row is a way to train, a column a method; what a row does stands in `tests/callbacks/situations/`. **ok**: the",
    "budget is met, zeros or shapes hold to the end, what is left trains, checkpoints of both phases load with",
    "`weights_only=True` into a plain module, nothing is left on the module. **refused**: an error before the first",
    "batch, with the module as it was; where only the first batch can show the cause, before its backward pass or as",
    "its step ends. **told**: an error later on that names the cause, where nobody can know before.",
    "–: not run yet; the cells of the default suite (`tests/callbacks/test_table.py`) are run first.",
    "",
)


def run(key: Key) -> dict[str, Any]:
    """One cell: its verdict, what it said, its CPU time in seconds."""
    situation, method = key
    clock = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        try:
            verdict, said = judge(SITUATIONS[situation], method, Path(folder))
        except (Exception, SystemExit) as error:
            verdict = "FAILED"  # type: ignore[assignment]
            said = f"{type(error).__name__}: {error}"
            traceback.print_exc()
    seconds = round(time.process_time() - clock, 2)
    return {"situation": situation, "method": method, "verdict": verdict, "said": said, "cpu_seconds": seconds}


def known(file: Path) -> dict[Key, dict[str, Any]]:
    """The cells that a file of results holds; the last line of each counts."""
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return {(row["situation"], row["method"]): row for row in rows}


def _remember(item: tuple[Key, str]) -> None:
    key, file = item
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning_prune").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        row = run(key)
    with Locked(Path(file)), open(file, "a") as lines:
        lines.write(json.dumps(row | circumstances()) + "\n")
    print(f"{key[0]} × {key[1]}: {row['verdict']}", flush=True)


def page(rows: Mapping[Key, Mapping[str, Any]], situations: Sequence[str], methods: Sequence[str]) -> list[str]:
    """Markdown: the table, what was refused or told in which words, and when it was run."""
    lines = ["| way to train | " + " | ".join(methods) + " |", "|" + "---|" * (len(methods) + 1)]
    for name in situations:
        cells = [rows[name, m]["verdict"] if (name, m) in rows else "–" for m in methods]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    counts = {v: sum(row["verdict"] == v for row in rows.values()) for v in ("ok", "refused", "told", "FAILED")}
    lines += [
        "",
        f"{len(rows)} of {len(situations) * len(methods)} cells were run: "
        + ", ".join(f"{n} {v}" for v, n in counts.items())
        + ".",
        "",
        "## What was said",
    ]
    for name in situations:
        words: dict[str, list[str]] = {}
        for method in methods:
            row = rows.get((name, method))
            if row is not None and row["said"]:
                words.setdefault(" ".join(row["said"].split()), []).append(method)
        if words:
            lines += ["", f"**{name}**", "", *(f"- {', '.join(who)}: `{said[:400]}`" for said, who in words.items())]
    seconds = sum(row["cpu_seconds"] for row in rows.values())
    stamps = sorted({(row["date"], row["revision"], row["versions"]) for row in rows.values()})
    lines += ["", *(f"Run {date}, revision {revision}, {versions}." for date, revision, versions in stamps)]
    return [*lines, f"They took {seconds / 60:.0f} minutes of CPU time."]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--situations", nargs="+", default=list(SITUATIONS), choices=list(SITUATIONS), metavar="NAME")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), metavar="NAME")
    parser.add_argument("--jobs", type=int, default=1, help="processes, one thread each")
    parser.add_argument("--results", type=Path, default=RESULTS / "behaviours.jsonl")
    parser.add_argument("--known", action="store_true", help="write the page from the cells that are there; run none")
    parser.add_argument("--out", type=Path, help="page to write")
    args = parser.parse_args()
    keys = [(situation, method) for situation in args.situations for method in args.methods]
    first = {*third()}
    keys.sort(key=lambda key: key not in first)  # those of the default suite first
    before = known(args.results)
    wanted = [key for key in keys if before.get(key, {}).get("verdict", "FAILED") == "FAILED"]
    work = [(key, str(args.results)) for key in wanted] if not args.known else []
    if args.jobs > 1:  # what starts processes of its own may not be in a process of the pool
        shared = [item for item in work if not SITUATIONS[item[0][0]].judged]
        work = [item for item in work if item not in shared]
        with multiprocessing.get_context("spawn").Pool(args.jobs) as pool:
            pool.map(_remember, shared, chunksize=1)
    for item in work:
        _remember(item)
    rows = {key: row for key, row in known(args.results).items() if key in set(keys)}
    text = "\n".join([*INTRODUCTION, *page(rows, args.situations, args.methods)])
    publish(text + "\n", args.out)


if __name__ == "__main__":
    main()
