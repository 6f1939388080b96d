"""Trainings that are killed at points of every kind, resumed from the last whole checkpoint, and compared by bits.

    python -m tests.benchmarks.crash --out crash.jsonl --table tests/benchmarks/crash.md
    python -m tests.benchmarks.crash --methods ltp --kinds copy --cases 3     # a part

Cases are numbered, and the same on every machine; those that the file has a line of are not run again. Every life is a
process of its own, forked from one that has imported everything; it dies by SIGKILL.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from tests.benchmarks.crashing.deaths import BATCHES, EPOCHS, EVERY, KINDS, TWICE
from tests.benchmarks.crashing.lives import Outcome, judge, whole_life
from tests.callbacks.methods import METHODS

FROM = {
    "nothing": "the start (there was no checkpoint yet)",
    "dense": "the warm-up",
    "soft": "the sparsify phase",
    "pruned": "after the removal",
}


class Case(NamedTuple):
    """A method, a kind of point, and the number of the point."""

    method: str
    kind: str
    number: int


def cases(methods: Sequence[str], kinds: Sequence[str], each: int) -> list[Case]:
    """So many of each kind for each method; the first of all come first."""
    return [Case(m, k, n) for n in range(each) for m in methods for k in kinds]


def run(wanted: Sequence[Case]) -> Iterator[tuple[Case, Outcome]]:
    """Judges cases, one after the other."""
    with TemporaryDirectory() as temporary:
        wholes = {}
        for number, case in enumerate(wanted):
            if case.method not in wholes:
                wholes[case.method] = whole_life(case.method, Path(temporary) / "whole")
            folder = Path(temporary) / str(number)
            yield case, judge(*case, folder, wholes[case.method])
            shutil.rmtree(folder)


def read(out: Path) -> list[tuple[Case, Outcome]]:
    """The cases of a file, and what they came to."""
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    return [(Case(*row[:3]), Outcome(**row[3])) for row in rows]


def table(found: Sequence[tuple[Case, Outcome]]) -> str:
    """The counts by kind and by method, as Markdown."""
    outcomes = [outcome for _, outcome in found]
    failures = [f"{c.method}, {c.kind} {c.number}: {o.failure}" for c, o in found if o.failure]
    stages = Counter(stage for o in outcomes for stage in o.resumed)
    lines = f"""# Trainings that are killed

`python -m tests.benchmarks.crash`, {datetime.date.today().isoformat()}: {len(found):,} trainings of {EPOCHS} epochs of
{BATCHES} batches, killed {sum(o.kills for o in outcomes):,} times and resumed from the last whole of the checkpoints
that are written every {EVERY} steps. **{len(failures)} ended otherwise than the training that nothing happened to**:
weights, optimizer state, the callback's state and the plan are compared bit for bit.

They went on {", ".join(f"{stages[stage]:,} times from {told}" for stage, told in FROM.items() if stages[stage])}.
{sum(o.torn for o in outcomes):,} files were torn, all by a death in the copy from one file system to another, and
`torch.load` refused each.""".split("\n")
    for title, place in (("killed at", 1), ("method", 0)):
        lines += ["", f"| {title} | cases | killed | torn files | not as uninterrupted |", "|---|---|---|---|---|"]
        for name in dict.fromkeys(case[place] for case, _ in found):
            mine = [o for case, o in found if case[place] == name]
            kills, torn, failed = (
                sum(o.kills for o in mine), sum(o.torn for o in mine), sum(bool(o.failure) for o in mine)
            )  # fmt: skip
            lines.append(f"| {name} | {len(mine)} | {kills} | {torn} | {failed} |")
    lines += ["", *(f"- {failure}" for failure in failures)]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    """The command."""
    every = [*KINDS, TWICE]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--kinds", nargs="+", default=every, choices=every)
    parser.add_argument("--cases", type=int, default=5, help="of each kind for each method")
    parser.add_argument("--out", type=Path, help="a line a case; the table is of all lines")
    parser.add_argument("--table", type=Path, help="write the counts there, as Markdown")
    arguments = parser.parse_args()
    found = read(arguments.out) if arguments.out and arguments.out.is_file() else []
    done = {case for case, _ in found}
    for case, outcome in run([c for c in cases(arguments.methods, arguments.kinds, arguments.cases) if c not in done]):
        found.append((case, outcome))
        if outcome.failure:
            print(*case, outcome.failure, file=sys.stderr, flush=True)
        if arguments.out:
            with arguments.out.open("a") as out:
                out.write(json.dumps([*case, asdict(outcome)]) + "\n")
    text = table(found)
    print(text)
    if arguments.table:
        arguments.table.write_text(text)
    sys.exit(any(outcome.failure for _, outcome in found))


if __name__ == "__main__":
    main()
