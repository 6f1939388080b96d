"""What goes wrong among several processes ends with an error soon, and a run goes on with another number of them."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, IterableDataset

from lightning_prune.errors import PhaseError
from tests.callbacks.methods import N, removes_channels, run
from tests.callbacks.processes import run_ranks, this_rank
from tests.toy import samples, zeros

SOON = 900.0  # seconds, of which an idle machine needs two; gloo gives up by itself after half an hour
QUIET: dict[str, Any] = {"strategy": "ddp", "limit_val_batches": 0}


class Faulty(lightning.Callback):
    """Rank 1 dies in the sparsify phase, or raises."""

    def __init__(self, dies: bool) -> None:
        self.dies = dies

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        if trainer.global_rank == 1 and trainer.callbacks[0].stage == "soft":
            if self.dies:
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError("a disk is gone")


def fit_with_a_fault(path: Path, method: str, dies: bool) -> None:
    run(
        path, method, callbacks=[Faulty(dies)], data={"train_dataloaders": DataLoader(samples(), 4)}, devices=3, **QUIET
    )


@pytest.mark.parametrize(("method", "dies"), [("ltp", True), ("mrts", True), ("taylor", False)])
def test_when_a_rank_fails_in_the_sparsify_phase_the_others_end(method: str, dies: bool, tmp_path: Path) -> None:
    codes = run_ranks(3, fit_with_a_fault, tmp_path, method, dies, seconds=SOON)
    assert codes[1] == (-signal.SIGKILL if dies else 1)
    assert codes[0] == codes[2] == 1


class Uneven(IterableDataset[Any]):
    """Rank 1's data ends two batches before that of the others."""

    def __iter__(self) -> Any:
        x, y = samples().tensors
        end = 24 - 8 * (this_rank() == 1)
        return iter([(x[i], y[i]) for i in range(end)])


class Sized(Uneven):
    """The same with a length."""

    def __len__(self) -> int:
        return 24 - 8 * (this_rank() == 1)


def padded() -> Any:
    """Samples that do not go into three parts: Lightning's sampler gives some twice."""
    return samples(25)


def fit_uneven(path: Path, kind: Callable[[], Any], options: dict[str, Any]) -> None:
    """Writes the error that this rank ends with, or its weights."""
    torch.manual_seed(this_rank())
    data = {"train_dataloaders": DataLoader(kind(), 4), "val_dataloaders": DataLoader(samples(), 16)}
    phases = {"warmup": "2 steps", "sparsify": "10 steps"}
    try:
        module, _, _ = run(path, "ltp", data=data, devices=3, strategy="ddp", options=phases, **options)
    except PhaseError as error:
        (path / f"error{this_rank()}").write_text(str(error))
    else:
        weights = torch.cat([p.detach().flatten() for p in module.parameters()])
        (path / f"end{this_rank()}").write_text(f"{weights.double().sum():.17g}, {zeros(module)} zeros")


STEPS: dict[str, Any] = {"max_epochs": -1, "max_steps": 15}


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (Sized, {}, "The ranks have 6, 4, 6 training batches an epoch"),
        (Uneven, STEPS, "The data of ranks [1] ends after 4 batches of epoch 0"),
        (Uneven, STEPS | {"limit_train_batches": 4}, None),
        (padded, {}, None),
    ],
)
def test_uneven_data_is_an_error_on_every_rank_or_right(kind: Any, options: Any, message: Any, tmp_path: Path) -> None:
    assert run_ranks(3, fit_uneven, tmp_path, kind, options, seconds=SOON) == [0, 0, 0]
    told, done = ([path.read_text() for path in tmp_path.glob(f"{name}?")] for name in ("error", "end"))
    if message is not None:
        assert len(told) == 3
        assert all(text.startswith(message) and "limit_train_batches=4" in text for text in told)
    else:
        assert told == []
        assert len(done) == 3
        assert len(set(done)) == 1
        assert abs(int(done[0].split(", ")[1].split()[0]) - 0.8 * N) <= 1


class Take(lightning.Callback):
    """Notes the shares of the sparsify phase at which batches end, and that the method's state is the checkpoint's."""

    def __init__(self, resumed: Path | None) -> None:
        self.shares: list[tuple[str, float]] = []
        self._resumed = resumed

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if self._resumed is not None:
            saved = torch.load(self._resumed, weights_only=True)["callbacks"]
            (state,) = (s for s in saved.values() if "stage" in s)
            mine = trainer.callbacks[0].state_dict()
            assert mine["stage"] == state["stage"]
            for name, tensor in state.get("tensors", {}).items():
                assert torch.equal(mine["tensors"][name], tensor), name
            assert mine.get("numbers") == state.get("numbers")

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.shares.append((trainer.callbacks[0].stage, trainer.callbacks[0].progress))


class Stop(lightning.Callback):
    """Ends the training after an epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        trainer.should_stop = trainer.current_epoch == self.epoch


def fit_part(path: Path, method: str, ranks: int, resumed: str | None, stop: int) -> None:
    """A part of a training of six epochs, of 24 batches on all ranks together; writes what this rank ends it with."""
    torch.manual_seed(this_rank())
    checkpoint = path / f"{resumed}.ckpt" if resumed else None
    take = Take(checkpoint)
    saver = ModelCheckpoint(dirpath=path, filename=f"{ranks} ranks, {{epoch}}", save_top_k=-1)
    module, callback, _ = run(
        path, method, callbacks=[Stop(stop), take, saver], devices=ranks, ckpt_path=checkpoint,
        data={"train_dataloaders": DataLoader(samples(96), 4)}, **QUIET,
    )  # fmt: skip
    end = {
        "weights": [p.double().sum().item() for p in module.parameters()],
        "shapes": [list(p.shape) for p in module.parameters()],
        "zeros": zeros(module),
        "shares": take.shares,
        "numbers": getattr(callback, "numbers", None),
    }
    (path / f"{ranks} ranks, rank {this_rank()}.json").write_text(json.dumps(end))


def ends(path: Path, ranks: int) -> dict[str, Any]:
    """What a part has ended with, the same on every rank."""
    first, *others = (json.loads((path / f"{ranks} ranks, rank {n}.json").read_text()) for n in range(ranks))
    assert others == [first] * (ranks - 1)
    return dict(first)


@pytest.mark.parametrize("method", ["ltp", "mrts"])
def test_a_run_goes_on_with_another_number_of_processes(method: str, tmp_path: Path) -> None:
    """Two processes for the warm-up and a third of the phase, one for the next third, three from there on."""
    assert run_ranks(2, fit_part, tmp_path, method, 2, None, 1) == [0, 0]
    assert run_ranks(1, fit_part, tmp_path, method, 1, "2 ranks, epoch=1", 2) == [0]
    assert run_ranks(3, fit_part, tmp_path, method, 3, "1 ranks, epoch=2", 5) == [0, 0, 0]
    two, one, three = (ends(tmp_path, ranks) for ranks in (2, 1, 3))
    assert [p for _, p in two["shares"]] == pytest.approx([*[0] * 12, *[(b + 1) / 36 for b in range(12)]])
    assert [p for _, p in one["shares"]] == pytest.approx([1 / 3 + (b + 1) / 72 for b in range(24)])
    assert [p for _, p in three["shares"]] == pytest.approx([min(1, 2 / 3 + (b + 1) / 24) for b in range(24)])
    last = 7 if removes_channels(method) else 6  # soft batches: channels go at the start of the next
    assert [s for s, _ in three["shares"]] == ["soft"] * (last + 1) + ["pruned"] * (23 - last)
    if removes_channels(method):
        assert three["numbers"]["macs"] <= 0.5
    else:
        assert abs(three["zeros"] - 0.8 * N) <= 1
