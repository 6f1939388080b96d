"""Random networks and random plans by the thousand: what `tests/channels/test_properties.py` asks of 300.

    python -m tests.benchmarks.properties --count 20000 --shard 0/2 --out tests/benchmarks/properties.md
    python -m tests.benchmarks.properties --begin 4711 --count 1      # one case again

Cases are numbered, and the same on every machine. Numbers that `--rows` holds are not run again, so a run goes on where
it was stopped; shards may share the file. A case that fails is made smaller and printed: put it into
`tests/channels/grammar/found.py`, whose cases run with the tests.
"""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import os
import re
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from tests.channels.grammar import networks, plans
from tests.channels.grammar.check import Case, check, shrink
from tests.channels.grammar.networks import Seeded

MOST = 10
"""Steps of a network."""


def case_of(number: int) -> Case:
    """The case of that number."""
    pick = Seeded(number)
    return Case(networks.generate(pick, MOST), plans.generate(pick))


def outcome(case: Case, folder: Path) -> str:
    """As `check`, and "FAILED ..." for what must not be."""
    try:
        return check(case, folder)
    except Exception as error:
        return f"FAILED {type(error).__name__}: {(str(error).strip() or 'assertion')[:300]}"


def row_of(number: int, folder: Path) -> dict[str, Any]:
    """What came of a case, its steps, and of one that failed what is left of it."""
    case, start = case_of(number), time.process_time()
    found = outcome(case, folder)
    row = {"number": number, "outcome": found, "steps": sorted({step[0] for step in case.network["steps"]})}
    row["seconds"] = round(time.process_time() - start, 2)
    if found.startswith("FAILED"):
        row["case"] = shrink(case, lambda smaller: outcome(smaller, folder)[:20] == found[:20])
    return row


def reason(text: str) -> str:
    """An outcome without its numbers and names, for counting."""
    if text.startswith("TargetError"):
        return "TargetError: the target cannot be met, with what stays and why"
    return re.sub(r"\d+", "n", text)[:110]


def page(rows: list[dict[str, Any]], note: str) -> str:
    """The counts as Markdown."""
    groups = Counter("failed" if r["outcome"].startswith("FAILED") else reason(r["outcome"]) for r in rows)
    steps: dict[str, Counter[str]] = {}
    for row in rows:
        kind = row["outcome"].split()[0] if row["outcome"].startswith(("pruned", "FAILED")) else "refused"
        for step in row["steps"]:
            steps.setdefault(step, Counter())[kind] += 1
    lines = [
        "# Random networks, random plans",
        "",
        f"{datetime.date.today()}, torch {torch.__version__}, CPU. {len(rows):,} cases (numbers {rows[0]['number']:,} "
        f"to {rows[-1]['number']:,}), networks of up to {MOST} steps, {sum(r['seconds'] for r in rows) / 60:,.0f} CPU "
        f"minutes. **{groups['failed']} failed.** `python -m tests.benchmarks.properties` (see its first lines).",
        "",
        "Of each pruned network: masked is sliced in eval and in train mode (outputs, gradients, statistics, float64, "
        "1e-8), undoing restores every bit, two plans are one, files bring it back, and the MACs and parameters "
        "that are said, and those asked for, are what PyTorch counts within 1 %, or a note says by how much not. Of "
        "each refused one: it has a reason, and nothing has changed. In a rewritten graph with dropout, train mode is "
        "not compared here.",
        "",
        *([note, ""] if note else []),
        "| outcome | cases |",
        "|---|---|",
        *(f"| {name.replace('|', '/')} | {count:,} |" for name, count in groups.most_common()),
        "",
        "| step | networks | pruned | refused | failed |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {sum(c.values()):,} | {c['pruned']:,} | {c['refused']:,} | {c['FAILED']:,} |"
            for name, c in sorted(steps.items())
        ),
        "",
        *(f"- {r['number']}: {r['outcome']}: `{json.dumps(r['case'])}`" for r in rows if "case" in r),
    ]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--begin", type=int, default=0)
    parser.add_argument("--shard", default="0/1", help="i/n: every n-th case, from the i-th on")
    parser.add_argument("--rows", type=Path, default=Path("build/properties.jsonl"))
    parser.add_argument("--out", type=Path, help="write the page of all rows there")
    parser.add_argument("--note", default="", help="a sentence for its head")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    args.rows.parent.mkdir(parents=True, exist_ok=True)
    known = {r["number"]: r for r in map(json.loads, args.rows.read_text().splitlines())} if args.rows.exists() else {}
    index, shards = map(int, args.shard.split("/"))
    with TemporaryDirectory() as folder, args.rows.open("a") as file:
        for number in range(args.begin + index, args.begin + args.count, shards):
            if number not in known:
                known[number] = row_of(number, Path(folder))
                os.write(file.fileno(), (json.dumps(known[number]) + "\n").encode())
                if "case" in known[number]:
                    print(number, known[number]["outcome"], json.dumps(known[number]["case"]), sep="\n", flush=True)
    rows = [known[number] for number in sorted(known)]
    if args.out:
        args.out.write_text(page(rows, args.note))
    sys.exit(any("case" in r for r in rows))


if __name__ == "__main__":
    main()
