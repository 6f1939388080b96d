"""``lightning-prune compare``: two models side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lightning_prune.cli.data import add_data
from lightning_prune.cli.mistakes import UserError
from lightning_prune.cli.models import Opened, open_model
from lightning_prune.cli.parser import PROGRAM, Parser, check_names, pairs
from lightning_prune.export.cost import cost_report
from lightning_prune.export.measure import network_accuracy
from lightning_prune.support.table import percent

PAGE = """\
usage: lightning-prune compare A B [options]

Parameters, zeros, MACs, file sizes and latency on this CPU (of calls in turn) of two models; with --data, their
accuracy on the validation data too.

  A, B                      pruned files (.safetensors), checkpoints (.ckpt) or folders of runs
  --input CxHxW             size of one image, such as 3x224x224; files of a run know it
  --data MODULE             {data}
                            --data.root FOLDER, --data.image_size 32, ...
  --batch N                 images in a call that is timed; default 1
  --threads N               threads while it is timed; default 1

  lightning-prune compare dense.ckpt lightning_logs/version_0 --data DigitsDataModule
"""


def run(args: Sequence[str]) -> None:
    """Prints the table."""
    parser = Parser(prog=f"{PROGRAM} compare")
    parser.add_argument("a", type=str)
    parser.add_argument("b", type=str)
    parser.add_argument("--input", type=str)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    bases = add_data(parser, args, Path(args[0] if args else ""))
    check_names(args, parser.names(), bases)
    given = parser.parse_args(list(args))
    first, second = open_model(given.a), open_model(given.b)
    example = first.example(given.input)
    if example is None:
        example = second.example(None)
    if example is None:
        raise UserError(f"neither {given.a} nor {given.b} tells the size of an image: give --input, such as 3x224x224.")
    report = cost_report(second.network, example, baseline=first.network, batch=given.batch, threads=given.threads)
    table = replace(report.table(), head=("", "A", "B", "B / A"), above=_files(first, second))
    if any(name.partition(".")[0] == "data" for name, _ in pairs(args)):
        data = parser.instantiate_classes(given).data
        data.setup("validate")
        a, b = (network_accuracy(opened.network, data.val_dataloader()) for opened in (first, second))
        table = replace(table, rows=[("accuracy", percent(a), percent(b), f"{b - a:+.2%}"), *table.rows])
    print(table)


def _files(first: Opened, second: Opened) -> list[str]:
    return [f"{letter}  {opened.path}: {opened.said}" for letter, opened in (("A", first), ("B", second))] + [""]
