"""What is done with a Trainer: several fits, evaluation, and fits that are broken off."""

from __future__ import annotations

import signal
from typing import Any

import lightning
import pytest
import torch

from lightning_prune import KeepZeros
from tests.callbacks.methods import removes_channels, size
from tests.callbacks.situations.cell import EPOCHS, Cell, Situation
from tests.toy import loaders, trainer


class Breaks(lightning.Callback):
    """Raises in the sparsify phase."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 6:
            raise self.error


def broken(error: type[BaseException], raised: type[BaseException]) -> Any:
    """A fit that is broken off leaves a plain module, which a second fit with the same callback prunes."""

    def drive(cell: Cell) -> None:
        handler = signal.getsignal(signal.SIGINT)  # Lightning shuts it off as it stops
        try:
            with pytest.raises(raised):
                cell.fit(callbacks=[Breaks(error("on purpose"))])
        finally:
            signal.signal(signal.SIGINT, handler)
        assert cell.callback.stage == "soft"
        cell.check_plain()
        cell.checkpoints.clear()
        cell.fit()

    return drive


def again(cell: Cell) -> None:
    """A second Trainer trains what the first has pruned: zeros are held by `KeepZeros`, shapes by nothing."""
    cell.fit()
    shapes = {n: p.shape for n, p in cell.module.named_parameters()}
    keep = [] if removes_channels(cell.method) else [KeepZeros()]
    trainer(cell.path, keep, max_epochs=1).fit(cell.module, **cell.situation.data())
    assert {n: p.shape for n, p in cell.module.named_parameters()} == shapes


def another(cell: Cell) -> None:
    """The same callback prunes another module in another Trainer."""
    cell.fit()
    cell.module = cell.situation.module()
    cell.watch.after.clear()
    cell.checkpoints.clear()
    cell.fit()


def longer(cell: Cell) -> None:
    """The same Trainer goes on with more epochs."""
    run = cell.fit()
    left = size(cell.net)
    run.fit_loop.max_epochs = EPOCHS + 2
    run.fit(cell.module, **cell.situation.data())
    assert size(cell.net) == left


def resumed(cell: Cell) -> None:
    """A run that is resumed from the sparsify phase."""
    cell.fit()
    file = cell.checkpoints["soft"]
    cell.module, cell.callback = cell.situation.module(), cell.make()
    cell.watch.after.clear()
    cell.trainer().fit(cell.module, **cell.situation.data(), ckpt_path=file)


def evaluated(cell: Cell) -> None:
    """Evaluation alone sees what training saw, of a checkpoint of either stage, and changes nothing."""
    run = cell.fit()
    data = loaders()["val_dataloaders"]
    ours = run.validate(cell.module, data, verbose=False)
    fresh = cell.situation.module()
    before = {n: p.clone() for n, p in cell.module.named_parameters()}
    for stage in ("soft", "pruned"):
        alone = trainer(cell.path, [cell.make()])
        found = alone.validate(fresh, data, ckpt_path=cell.checkpoints[stage], verbose=False)
        alone.test(fresh, data, verbose=False)
        alone.predict(fresh, data)
    assert found == ours
    assert all(torch.equal(p, before[n]) for n, p in cell.module.named_parameters())


SITUATIONS: dict[str, Situation] = {
    "a second fit that trains on": Situation(drive=again, trains_on=False),
    "a second module": Situation(drive=another),
    "raised max_epochs": Situation(drive=longer),
    "resumed in the sparsify phase": Situation(drive=resumed),
    "evaluation alone": Situation(drive=evaluated),
    "an exception": Situation(drive=broken(ZeroDivisionError, ZeroDivisionError)),
    "KeyboardInterrupt": Situation(drive=broken(KeyboardInterrupt, SystemExit)),
}
