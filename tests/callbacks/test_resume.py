"""Corner cases of resuming: accumulation, averaging, the checkpoint between the phases, another model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint

from lightning_prune import LTPCallback
from lightning_prune.export.meter import METERS
from tests.callbacks.methods import CHANNELS, equal, fit, keep_all, run
from tests.channels.latency.clocks import Counter
from tests.toy import Toy, loaders, trainer


def test_with_accumulation(method: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"accumulate_grad_batches": 2}
    module, _, _ = run(tmp_path / "whole", method, callbacks=[keep_all(tmp_path)], **options)
    again, _, _ = run(tmp_path / "again", method, ckpt_path=tmp_path / "step=6.ckpt", **options)
    assert equal(module, again)


def test_with_averaging(method: str, tmp_path: Path) -> None:
    module, _, _ = run(tmp_path / "whole", method, callbacks=[EMAWeightAveraging(decay=0.9), keep_all(tmp_path)])
    for step in (15, 45):
        again, _, _ = run(
            tmp_path / "again", method, callbacks=[EMAWeightAveraging(decay=0.9)],
            ckpt_path=tmp_path / f"step={step}.ckpt",
        )  # fmt: skip
        assert equal(module, again), step


@pytest.mark.parametrize("name", CHANNELS)
def test_from_the_checkpoint_between_the_phases(name: str, tmp_path: Path) -> None:
    """Saved at the end of the epoch after which the channels go: dense weights, full optimizer state."""
    checkpoints = ModelCheckpoint(dirpath=tmp_path, filename="{epoch}", save_top_k=-1)
    module, _, _ = run(tmp_path / "whole", name, callbacks=[checkpoints])
    path = tmp_path / "epoch=3.ckpt"
    assert torch.load(path, weights_only=True)["state_dict"]["net.0.weight"].shape[0] == 8
    again, _, _ = run(tmp_path / "again", name, ckpt_path=path)
    assert equal(module, again)


def test_another_model_is_refused_by_name(tmp_path: Path) -> None:
    fit(tmp_path, LTPCallback, callbacks=[keep_all(tmp_path)])
    other = trainer(tmp_path, [LTPCallback(exclude=["net.8"])])
    with pytest.raises(ValueError, match=r"it also has \['net.8.weight'\]"):
        other.fit(Toy(), **loaders(), ckpt_path=tmp_path / "step=15.ckpt")


def test_a_state_does_not_change_when_the_run_goes_on(method: str, tmp_path: Path) -> None:
    states: list[Any] = []

    class Take(lightning.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            callback = trainer.callbacks[0]
            if callback.stage == "soft" and not states:
                state = callback.state_dict()
                states.extend([state, copy.deepcopy(state)])

    run(tmp_path, method, callbacks=[Take()])
    live, copied = (torch.utils._pytree.tree_flatten(state)[0] for state in states)
    assert len(live) == len(copied)
    for a, b in zip(live, copied, strict=True):
        assert torch.equal(a, b) if torch.is_tensor(a) else a == b


def test_with_a_latency_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The times of layers are in the checkpoint: a clock that never says the same twice changes nothing."""
    meters = [Counter(noise=0.5), Counter(noise=0.5, layer=lambda shape: 1.0)]
    options = {"target_macs": None, "target_latency": 0.6}
    monkeypatch.setitem(METERS, "eager", lambda: meters[0])
    module, _, _ = run(tmp_path / "whole", "slimming", callbacks=[keep_all(tmp_path)], options=options)
    monkeypatch.setitem(METERS, "eager", lambda: meters[1])
    again, _, _ = run(tmp_path / "again", "slimming", ckpt_path=tmp_path / "step=15.ckpt", options=options)
    assert equal(module, again)
    assert meters[0].asked
    assert not meters[1].asked
