"""``lightning-prune pick``: the best checkpoint of a trail, and its pruned model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_prune.callbacks.trail import INDEX, Trail
from lightning_prune.cli.models import open_model
from lightning_prune.cli.parser import PROGRAM, Parser, check_names
from lightning_prune.io import save_pruned

PAGE = """\
usage: lightning-prune pick FOLDER [options]

A fit with --prune.trail=[0.5,0.2,0.1] saves a checkpoint as the kept share of the weights crosses each value. This
shows them, says which one scored best within a range, and writes its pruned model.

  FOLDER                    of the run, or of the trail in it
  --max_kept S              most of the weights that may be left; default 1
  --min_kept S              least of the weights that may be left; default 0
  --mode max|min            whether a high or a low score is good; default max
  --out FILE                write the pruned model of the one that is picked

  lightning-prune pick lightning_logs/version_0 --max_kept 0.2 --out picked.safetensors
"""


def run(args: Sequence[str]) -> None:
    """Prints the trail and what is picked, and writes the file."""
    parser = Parser(prog=f"{PROGRAM} pick")
    parser.add_argument("folder", type=str)
    parser.add_argument("--max_kept", type=float, default=1.0)
    parser.add_argument("--min_kept", type=float, default=0.0)
    parser.add_argument("--mode", choices=["max", "min"], default="max")
    parser.add_argument("--out", type=str)
    check_names(args, parser.names(), {})
    given = parser.parse_args(list(args))
    folder = Path(given.folder)
    trail = Trail(folder if (folder / INDEX).is_file() else folder / "trail")
    entry = trail.pick(given.max_kept, given.min_kept, given.mode)
    print(f"{trail}\n\npicked {entry.path}")
    if given.out is not None:
        print(f"saved {save_pruned(open_model(entry.path).network, given.out)}")
