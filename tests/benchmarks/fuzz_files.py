"""Mutated files by the thousand: never a crash, never memory out of proportion, one exception type, or what was saved.

    python -m tests.benchmarks.fuzz_files --cases 100000 --table tests/benchmarks/fuzz_files.md
    python -m tests.benchmarks.fuzz_files --begin 4711 --cases 1     # one case again

Cases are numbered, and the same on every machine. They are read in child processes of 25,000 each, so that a
crash is one finding and not the end.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

CHUNK = 25_000
OUTCOMES = ("refused", "refused as a model", "loaded the same", "loaded what it says")


@dataclass
class Tally:
    """What cases came to.

    Attributes:
        counts: {(kind of file, mutation, outcome): how many}.
        findings: what must not be, with its case's number.
        grown: the most that a case of each child added to its memory, in bytes.
    """

    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    grown: list[int] = field(default_factory=list)

    def add(self, text: str, code: int) -> int:
        """Counts a child's lines; the number of its last case."""
        last = -1
        for line in text.splitlines():
            value = json.loads(line)
            if isinstance(value, int):
                last = value
            elif isinstance(value, dict):
                self.grown.append(value["grown"])
            else:
                number, seed, mutation, outcome = value
                if outcome.startswith("FINDING"):
                    self.findings.append(f"case {number} ({seed}; {mutation}): {outcome}")
                    outcome = "FINDING"
                self.counts[seed, mutation, outcome] += 1
        if code:
            self.findings.append(f"case {last}: FINDING: the process ended with code {code}")
        return last


def run(begin: int, cases: int) -> Tally:
    """Judges cases [begin, begin + cases)."""
    tally, at, end = Tally(), begin, begin + cases
    with TemporaryDirectory() as temporary:
        while at < end:
            stop, out = min(at + CHUNK, end), Path(temporary) / "lines"
            command = [sys.executable, "-m", "tests.benchmarks.fuzzing.judge", str(at), str(stop)]
            out.write_text("")
            code = subprocess.run([*command, f"{temporary}/home", str(out)]).returncode
            last = tally.add(out.read_text(), code)
            if code and last < at:
                raise RuntimeError(f"the child process ended with code {code} before its first case")
            at = last + 1 if code else stop
            print(f"{at - begin} of {cases}", *tally.findings, sep="\n", file=sys.stderr, flush=True)
    return tally


def table(tally: Tally, begin: int, cases: int) -> str:
    """The counts by mutation and by kind of file, as Markdown."""
    most = max(tally.grown, default=0)
    lines = f"""# Mutated files

`python -m tests.benchmarks.fuzz_files --begin {begin} --cases {cases}`: {sum(tally.counts.values()):,} cases,
**{len(tally.findings)} findings** (crashes, other exceptions than `PrunedFileError`, memory out of proportion, files or
processes opened, another model than the one saved under its hash). What a single case added to the memory of its
process was at most {most / 2**20:.1f} MiB; files have 1 to 40 KB.

*Refused as a model*: the tensors are right, but no network is built from what the file says. *Loaded the same*: bit
for bit what was saved. *Loaded what it says*: of cases with the right hash only, as whoever knows the format can write
other numbers.""".split("\n")
    for title, place in (("mutation", 1), ("file", 0)):
        by: dict[str, Counter[str]] = {}
        for key, count in tally.counts.items():
            by.setdefault(key[place], Counter())[key[2]] += count
        lines += ["", f"| {title} | cases | " + " | ".join((*OUTCOMES, "findings")) + " |", "|---" * 7 + "|"]
        for name, found in sorted(by.items()):
            cells = [sum(found.values()), *(found[o] for o in OUTCOMES), found["FINDING"]]
            lines.append(f"| {name} | " + " | ".join(f"{cell:,}" for cell in cells) + " |")
    lines += ["", *(f"- {finding}" for finding in tally.findings)]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--begin", type=int, default=0)
    parser.add_argument("--table", type=Path, help="write the counts there, as Markdown")
    arguments = parser.parse_args()
    tally = run(arguments.begin, arguments.cases)
    text = table(tally, arguments.begin, arguments.cases)
    print(text)
    if arguments.table:
        arguments.table.write_text(text)
    sys.exit(bool(tally.findings))


if __name__ == "__main__":
    main()
