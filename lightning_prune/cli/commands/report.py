"""``lightning-prune report``: what a file, a checkpoint or a run's folder holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_prune.callbacks.trail import INDEX, Trail
from lightning_prune.cli.models import open_model
from lightning_prune.cli.parser import PROGRAM, Parser, check_names
from lightning_prune.export.cost import cost_report
from lightning_prune.report import sparsity_report

PAGE = """\
usage: lightning-prune report PATH [options]

Zeros and sizes of each layer, and in all; for a compact model how much of the dense one is left. Where the size of an
input is known, also MACs, file sizes and latency on this CPU, of the model and of the dense one beside it. Files of a
run know it; others are told:

  PATH                      a pruned file (.safetensors), a checkpoint (.ckpt), the folder of a run or of a trail, one
                            that save_pretrained wrote, or hf-hub:owner/name
  --input CxHxW             size of one image, such as 3x224x224
  --batch N                 images in a call that is timed; default 1
  --threads N               threads while it is timed; default 1

  lightning-prune report lightning_logs/version_0
  lightning-prune report mobilenet.safetensors --input 3x224x224
"""


def run(args: Sequence[str]) -> None:
    """Prints the report."""
    parser = Parser(prog=f"{PROGRAM} report")
    parser.add_argument("path", type=str)
    parser.add_argument("--input", type=str)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    check_names(args, parser.names(), {})
    given = parser.parse_args(list(args))
    if (Path(given.path) / INDEX).is_file():
        print(Trail(given.path))
        return
    opened = open_model(given.path)
    example = opened.example(given.input)
    print(f"{opened.path}: {opened.said}\n\n{sparsity_report(opened.network)}")
    if example is None:
        print("\nGive --input, such as 3x224x224, for MACs, file sizes and latency.")
    else:
        print(f"\n{cost_report(opened.network, example, batch=given.batch, threads=given.threads)}")
