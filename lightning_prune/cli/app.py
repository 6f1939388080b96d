"""The command ``lightning-prune``: finds the command, runs it, and tells mistakes of its user in one line.

lightning-prune fit                                            # resnet18 on the bundled digits, 10x
lightning-prune fit --model.model_name mixnet_s --data FashionMNISTDataModule --prune.target_sparsity 0.8
lightning-prune fit --prune MRTSCallback --prune.target_macs 0.5    # channels removed instead of weights zeroed
lightning-prune report pruned.safetensors
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec

from lightning_prune.io.describe import own_version
from lightning_prune.support.near import did_you_mean

COMMANDS = {
    "fit": "train, prune, finetune and save a model",
    "validate": "accuracy of a checkpoint or pruned file on the validation data",
    "test": "the same on the test data",
    "predict": "classes and probabilities of the test data, into a file",
    "report": "what a file, a checkpoint or a run's folder holds: sparsity, channels, cost",
    "compare": "two models side by side",
    "pick": "the best checkpoint of a trail, and its pruned model",
    "sweep": "one fit for each of several targets: a table and a plot of accuracy against cost",
    "deploy": "the fastest ONNX file that loses no more than a stated accuracy",
    "rethink": "is a pruned network worth its weights? It is trained anew, by three protocols",
}


def page() -> str:
    """What ``lightning-prune --help`` prints."""
    lines = [f"  {name:<10}{said}" for name, said in COMMANDS.items()]
    return "\n".join([
        "usage: lightning-prune COMMAND [options]",
        "",
        "Prunes timm models with PyTorch Lightning: weights zeroed (sparse) or channels removed (compact).",
        "",
        *lines,
        "",
        "lightning-prune COMMAND --help says what a command takes. To begin:",
        "  lightning-prune fit",
    ])  # fmt: skip


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of ``lightning-prune``.

    Args:
        args: command line; None reads it from the process.

    Raises:
        SystemExit: with 2 after a mistake of the user's, which was told in one line on stderr; with a message (1) where
            jsonargparse is not installed, or nothing was pruned. Faults of ours keep their traceback.
    """
    if find_spec("jsonargparse") is None:
        raise SystemExit('lightning-prune needs jsonargparse: pip install "lightning-prune[cli]"')
    command, *rest = list(sys.argv[1:] if args is None else args) or ["--help"]
    if command in ("-h", "--help"):
        print(page())
    elif command == "--version":
        print(f"lightning-prune {own_version()}")
    elif command in COMMANDS:
        _run(command, rest)
    else:
        hint = did_you_mean(command, COMMANDS) or f"There are: {', '.join(COMMANDS)}."
        _fail("", f"there is no command {command!r}. {hint}")


def _run(command: str, rest: list[str]) -> None:
    # These need jsonargparse, and Lightning, which takes its time
    from lightning_prune.cli.help import pages
    from lightning_prune.cli.mistakes import told
    from lightning_prune.cli.quiet import quiet

    module = import_module(f"lightning_prune.cli.commands.{command}")
    if any(arg in ("-h", "--help") for arg in rest):
        print(pages(module.PAGE), end="")
        return
    with quiet():
        try:
            module.run(["--help" if arg == "--help.all" else arg for arg in rest])
        except Exception as error:
            message = told(error)
            if message is None:
                raise
            _fail(f" {command}", message)


def _fail(command: str, message: str) -> None:
    print(f"lightning-prune{command}: error: {message}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    main()
