"""``lightning-prune deploy``: the fastest ONNX file that loses no more than a stated accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from lightning_prune.cli.data import add_data
from lightning_prune.cli.mistakes import UserError
from lightning_prune.cli.models import open_model
from lightning_prune.cli.parser import PROGRAM, Parser, check_names
from lightning_prune.export.deploy import deploy
from lightning_prune.zoo.data.module import ReplayDataModule

PAGE = """\
usage: lightning-prune deploy PATH [options]

Exports a model to ONNX, checks it against PyTorch, quantizes it to int8 on training batches, measures accuracy and
latency of each form beside the dense network in the same runtimes, and writes the fastest form that keeps its accuracy.
The others are shown in a table.

  PATH                      a pruned file (.safetensors), a checkpoint (.ckpt), or the folder of a run
  --out FILE                the ONNX file; default model.onnx
  --data MODULE             calibrates and validates; default: the data of the run that PATH lies in. One of
                            {data};
                            --data.root FOLDER, --data.image_size 32, ...
  --calibration_batches N   training batches that int8 is calibrated on; default 10
  --max_drop S              accuracy that may be lost, as a share; default 0.01
  --precisions P,P          out of fp32 and int8; default both
  --runtimes R,R            out of onnxruntime and openvino; default those that are installed
  --baseline PATH           the dense model to compare with; default: the one that the plan of a compact model leads to
  --batch N, --threads N    of a call that is timed; default 1 and 1
  --rounds N                calls that are timed, of each form in turn; default 30

  lightning-prune deploy lightning_logs/version_0 --out digits.onnx
"""


def run(args: Sequence[str]) -> None:
    """Writes the file and prints the table."""
    parser = Parser(prog=f"{PROGRAM} deploy")
    parser.add_argument("path", type=str)
    parser.add_argument("--out", type=str, default="model.onnx")
    parser.add_argument("--calibration_batches", type=int, default=10)
    parser.add_argument("--max_drop", type=float, default=0.01)
    parser.add_argument("--precisions", type=str)
    parser.add_argument("--runtimes", type=str)
    parser.add_argument("--baseline", type=str)
    for name, default in (("batch", 1), ("threads", 1), ("rounds", 30)):
        parser.add_argument(f"--{name}", type=int, default=default)
    check_names(args, [*parser.names(), "--data"], {"data": (ReplayDataModule, "null")})
    if not args or args[0].startswith("--"):
        raise UserError("deploy needs the path of a model first, such as lightning_logs/version_0.")
    opened = open_model(args[0])
    check_names(args, parser.names(), add_data(parser, args, opened.path))
    given = parser.parse_args(list(args))
    data = parser.instantiate_classes(given).data
    data.setup("fit")
    validation = data.val_dataloader()
    if not len(validation):
        raise UserError(f"{type(data).__name__} has no validation data: what int8 loses would not be known.")
    calibration = list(islice(data.train_dataloader(), given.calibration_batches))
    result = deploy(
        opened.network,
        calibration[0][0][:1],
        given.out,
        calibration=calibration,
        validation=validation,
        max_drop=given.max_drop,
        baseline=None if given.baseline is None else open_model(given.baseline).network,
        batch=given.batch,
        threads=given.threads,
        runtimes=given.runtimes and given.runtimes.split(","),
        precisions=given.precisions and given.precisions.split(","),
        rounds=given.rounds,
    )
    print(f"{opened.path}: {opened.said}\n\n{result}\n\nsaved {result.path}")
