"""One cell of the table of behaviours: a way to train × a method, and what has to hold of the result."""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_prune import PruningCallback, take_shapes
from tests.callbacks.methods import METHODS, SPARSE_MACS, STEPS, check_budget, macs, removes_channels, target
from tests.toy import Toy, loaders, ours_left_on, samples, trainer

# 4 batches an epoch: the sparsify phase begins after 4 and ends after 12 of 16.
PHASES: dict[str, Any] = {"warmup": 1, "sparsify": 2, "recalibrate_batches": 2}
EPOCHS = 4


def kinds(method: str) -> list[str]:
    """What a situation may call a method: by its name, by what it removes, by whether it has steps of its own."""
    steps = ["steps"] if method in STEPS else []
    return [method, *steps, "channels" if removes_channels(method) else "weights", "all"]


@dataclass(frozen=True)
class Situation:
    """A way to train. What is made is made anew for each fit.

    Attributes:
        module: makes the LightningModule, whose `forward` gives logits of images.
        trainer: options of the Trainer.
        beside: makes the callbacks beside ours, in a folder.
        ours_last: whether ours is listed behind them.
        options: further options of ours, by kind of method (see `kinds`); the first that is there counts.
        network: name of the child that is pruned, which the method is told; None: it finds ``net``.
        data: arguments of ``fit``.
        drive: what is done with the cell; one fit if not given.
        refused: what a refusal says, by kind of method: before the first batch, with nothing changed.
        told: what an error later on says, by kind of method, where no one can know before.
        trains_on: whether training goes on after the removal.
        judged: whether the drive itself has seen to what has to hold, in other processes.
        shown: where a refusal comes that only the first batch can show: its "loss" (norms have seen the batch then), or
            the first "step" that an optimizer takes.
    """

    module: Callable[[], Any] = Toy
    trainer: Callable[[], dict[str, Any]] = dict
    beside: Callable[[Path], list[Any]] = lambda folder: []
    ours_last: bool = False
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    network: str | None = None
    data: Callable[[], dict[str, Any]] = lambda: loaders(n=32)
    drive: Callable[[Cell], None] = lambda cell: cell.fit()
    refused: Mapping[str, str] = field(default_factory=dict)
    told: Mapping[str, str] = field(default_factory=dict)
    trains_on: bool = True
    judged: bool = False
    shown: Literal["", "loss", "step"] = ""
    slow: bool = False


class Watch(lightning.Callback):
    """Keeps the parameters as they are when the units are gone, and a checkpoint of each stage."""

    def __init__(self, cell: Cell) -> None:
        self.cell, self.after = cell, dict[str, Tensor]()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        if self.cell.callback.stage == "pruned" and not self.after:
            self.after = {n: p.detach().clone() for n, p in self.cell.net.named_parameters()}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        if self.cell.callback.stage == "soft" and "soft" not in self.cell.checkpoints:
            self._save(trainer, "soft")

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if self.cell.callback.stage == "pruned":
            self._save(trainer, "pruned")

    def _save(self, trainer: Any, stage: str) -> None:
        self.cell.checkpoints[stage] = self.cell.path / f"{stage}.ckpt"
        trainer.save_checkpoint(self.cell.checkpoints[stage])


def fresh(situation: Situation) -> Any:
    """The module as it is before a fit, with all of its layers."""
    torch.manual_seed(0)
    module = situation.module()
    module.setup("fit")
    module.configure_model()
    return module


def net_of(situation: Situation, module: Any) -> nn.Module:
    """The network in a module that is pruned."""
    net = module.get_submodule(situation.network or "net")
    return getattr(net, "_orig_mod", net)  # type: ignore[no-any-return]


class Cell:
    """A method in a situation. A drive calls `fit`, or `trainer` for more."""

    def __init__(self, situation: Situation, method: str, path: Path) -> None:
        torch.manual_seed(0)
        self.situation, self.method, self.path = situation, method, path
        self.module = situation.module()
        self.checkpoints: dict[str, Path] = {}
        self.callback = self.make()
        self.watch = Watch(self)
        self.start = copy.deepcopy(self.module.state_dict())
        self.dense = net_of(situation, fresh(situation))

    @property
    def net(self) -> nn.Module:
        """The network that is pruned."""
        return net_of(self.situation, self.module)

    def make(self) -> PruningCallback:
        """The method's callback."""
        given = next((dict(self.situation.options[k]) for k in kinds(self.method) if k in self.situation.options), {})
        if (name := self.situation.network) is not None:
            given |= {"network": name} if removes_channels(self.method) else {"include": [f"{name}.*"]}
        return METHODS[self.method](**PHASES | target(self.method) | given)

    def trainer(self, **options: Any) -> Any:
        """A Trainer as the situation has it, with our callback among others."""
        beside = self.situation.beside(self.path)
        callbacks = [*beside, self.callback] if self.situation.ours_last else [self.callback, *beside]
        given = {"max_epochs": EPOCHS, "num_sanity_val_steps": 0} | self.situation.trainer() | options
        return trainer(self.path, [*callbacks, *given.pop("callbacks", ()), self.watch], **given)

    def fit(self, **options: Any) -> Any:
        """One fit of the module: the Trainer."""
        done = self.trainer(**options)
        done.fit(self.module, **self.situation.data())
        return done

    # ---- what has to hold -------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Budget met, zeros held or shapes smaller, what is left trains, checkpoints are plain, nothing left behind."""
        assert self.callback.stage == "pruned", f"the stage is {self.callback.stage} in the end"
        partly = self.method in SPARSE_MACS and self.situation.network is not None
        check_budget(self.method, self.net, self.dense, macs(self.module) - macs(self.net) if partly else 0.0)
        if self.situation.trains_on:
            self._check_training()
        self._check_gradients()
        for stage, file in self.checkpoints.items():
            self._check_checkpoint(stage, file)
        self.check_plain()

    def _check_training(self) -> None:
        assert self.watch.after, "no batch was trained after the removal"
        trained = dict(self.net.named_parameters())
        assert {n: p.shape for n, p in trained.items()} == {n: p.shape for n, p in self.watch.after.items()}
        for name, now in trained.items():
            before = self.watch.after[name]
            if now.ndim > 1 and now.requires_grad:
                assert torch.equal(before == 0, now == 0), f"zeros of {name} moved"
                assert not torch.equal(before, now), f"{name} does not train any more"

    def _check_gradients(self) -> None:
        images, labels = samples(8).tensors
        module = self.module.train()
        module.zero_grad()
        F.cross_entropy(module(images.to(next(module.parameters()).dtype)), labels).backward()
        missing = [n for n, p in self.net.named_parameters() if p.requires_grad and p.grad is None]
        assert not missing, f"no gradient reaches {missing}"
        module.zero_grad()

    def _check_checkpoint(self, stage: str, file: Path) -> None:
        checkpoint = torch.load(file, weights_only=True)
        plain = fresh(self.situation)
        keys = list(plain.state_dict())
        take_shapes(plain, checkpoint)
        found = list(checkpoint["state_dict"])
        assert stage == "pruned" or found == keys, f"keys of a checkpoint in stage {stage}: {set(found) ^ set(keys)}"
        plain.load_state_dict(checkpoint["state_dict"], strict=True)

    def check_plain(self) -> None:
        """Nothing of ours is on the module."""
        left = ours_left_on(self.module)
        assert not left, f"left behind on {left}"
        assert not [k for k in vars(self.module) if k.startswith("on_")]
        assert not [n for n, m in self.module.named_modules() if m._forward_hooks or m._forward_pre_hooks]

    def check_untouched(self) -> None:
        """What a refusal leaves: the module that was given, before any step."""
        assert self.callback.seen == 0, f"refused after {self.callback.seen} batches"
        assert self.callback.stage == "dense", f"refused in stage {self.callback.stage}"
        self.check_plain()
        now = self.module.state_dict()
        assert {n: v.shape for n, v in now.items()} == {n: v.shape for n, v in self.start.items()}
        seen = {n for n, _ in self.module.named_buffers()} if self.situation.shown == "loss" else {*()}
        moved = [n for n, v in now.items() if n not in seen and not torch.equal(v.to(self.start[n]), self.start[n])]
        assert self.situation.shown == "step" or not moved, f"a refusal came after {moved[:3]} had moved"


Verdict = Literal["ok", "refused", "told"]


def judge(situation: Situation, method: str, path: Path) -> tuple[Verdict, str]:
    """Runs a cell and checks what it promises: the verdict, and what a refusal said.

    Raises:
        AssertionError: a promise is broken; any other error is one that nobody expected.
    """
    cell = Cell(situation, method, path)
    refused = _words(situation.refused, method)
    told = _words(situation.told, method)
    with refusal(refused or told) as said:
        situation.drive(cell)
    if refused:
        cell.check_untouched()
        return "refused", said[0]
    if told:
        cell.check_plain()
        return "told", said[0]
    if not situation.judged:
        cell.check()
    return "ok", ""


@contextlib.contextmanager
def refusal(words: str | None) -> Iterator[list[str]]:
    """Expects an error that says this, if anything."""
    said: list[str] = []
    if words is None:
        yield said
        return
    try:
        yield said
    except Exception as error:
        said.append(f"{type(error).__name__}: {error}")
        if not re.search(words, said[0], re.DOTALL):
            raise
        return
    raise AssertionError(f"nothing was refused, and {words!r} was expected")


def _words(told: Mapping[str, str], method: str) -> str | None:
    """What is said to a method; "" and None: nothing."""
    return next((told[kind] for kind in kinds(method) if kind in told), None) or None
