"""What the commands that run a Trainer share: the options, their defaults, and the callbacks of ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from lightning_prune.callbacks import ChannelPruning, LTPCallback, PruningCallback, WeightPruning
from lightning_prune.cli.example import ExampleInput
from lightning_prune.cli.mistakes import UserError
from lightning_prune.cli.models import read_checkpoint
from lightning_prune.cli.parser import PROGRAM, Parser, check_file, check_names, pairs, value_of
from lightning_prune.zoo.classifier import TimmClassifier
from lightning_prune.zoo.data.module import ReplayDataModule

PRESET = {"class_path": "lightning_prune.LTPCallback", "init_args": {"warmup": 0.4, "sparsify": 0.4}}
DATA = {"class_path": "lightning_prune.zoo.data.DigitsDataModule", "init_args": {"batch_size": 64}}
# Channels go in the first half, weights in the second.
FIRST, THEN = {"warmup": 0.1, "sparsify": 0.4}, {"warmup": 0.6, "sparsify": 0.2}
BASES = {
    "prune": (PruningCallback, str(PRESET["class_path"])),
    "then": (WeightPruning, "null"),
    "data": (ReplayDataModule, str(DATA["class_path"])),
}


class PruneCLI(LightningCLI):
    """LightningCLI of one command, with a pruning callback under ``--prune`` and a second one under ``--then``.

    Args:
        args: the options, after the command.
        run: whether to run the command; else Trainer, model, data and callbacks are made, as attributes.
        options: others of LightningCLI.

    Attributes:
        prunings: the callbacks that prune, in their order.
    """

    command: ClassVar[str]
    prunings: list[PruningCallback]

    def __init__(self, args: Sequence[str], run: bool = True, **options: Any) -> None:
        self._given = list(args)
        super().__init__(
            TimmClassifier,
            ReplayDataModule,
            subclass_mode_data=True,
            seed_everything_default=0,
            parser_class=Parser,
            parser_kwargs={"prog": PROGRAM},
            args=[self.command, *args] if run else list(args),
            run=run,
            **options,
        )

    @classmethod
    def subcommands(cls) -> dict[str, set[str]]:  # type: ignore[override]
        """Only the command that runs: the parsers of the others would take their time."""
        return {cls.command: LightningCLI.subcommands()[cls.command]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.callback_keys.append("prune")
        parser.add_subclass_arguments(PruningCallback, "prune", fail_untyped=False)
        parser.add_subclass_arguments(WeightPruning, "then", required=False, fail_untyped=False)
        parser.set_defaults({"prune": PRESET, "data": DATA})
        parser.link_arguments("data.num_classes", "model.num_classes", apply_on="instantiate")
        parser.link_arguments("data.in_chans", "model.in_chans", apply_on="instantiate")
        self.options = parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Checks what can be checked, sets the defaults of the chosen methods, and parses."""
        given = self._given
        assert isinstance(self.options, Parser)
        chosen = check_names(given, self.options.names(), BASES)
        _check_then(chosen, given)
        if (path := value_of(given, "ckpt_path")) and "://" not in path and path not in ("last", "best", "hpc", "null"):
            read_checkpoint(check_file(path, "checkpoint"))
        self._set_defaults(chosen)
        self.config = parser.parse_args(args)

    def _set_defaults(self, chosen: Mapping[str, type]) -> None:
        """The preset is for LTP alone: jsonargparse would keep what another method also knows."""
        paths = {key: f"{cls.__module__}.{cls.__qualname__}" for key, cls in chosen.items()}
        if "then" in paths and "prune" in paths:
            self.options.set_defaults({
                "prune": {"class_path": paths["prune"], "init_args": FIRST},
                "then": {"class_path": paths["then"], "init_args": THEN},
            })  # fmt: skip
        elif "prune" in paths and chosen["prune"] is not LTPCallback:
            self.options.set_defaults({"prune": {"class_path": paths["prune"]}})

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        trainer = super().instantiate_trainer(**kwargs)
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        first = next(c for c in callbacks if isinstance(c, PruningCallback))
        second = self._get(self.config_init, "then")
        self.prunings = [first] if second is None else [first, second]
        place = callbacks.index(first)
        callbacks[place : place + 1] = [*self.prunings, *self.callbacks_of_ours()]
        return trainer

    def callbacks_of_ours(self) -> list[Callback]:
        """What stands behind the callbacks that prune."""
        return [ExampleInput()]


def _check_then(chosen: Mapping[str, type], given: Sequence[str]) -> None:
    """A second method follows one that removes channels."""
    option = next((name for name, _ in pairs(given) if name.startswith("then.")), None)
    if "then" in chosen:
        first = chosen.get("prune", ChannelPruning)
        if not issubclass(first, ChannelPruning):
            raise UserError(
                f"--then {chosen['then'].__name__} zeroes weights of what a method that removes channels has left, and "
                f"{first.__name__} removes none. Give one that does, such as --prune MRTSCallback."
            )
    elif option is not None and option != "then.help":
        raise UserError(f"--{option} is an option of no method: give one, such as --then LTPCallback.")
