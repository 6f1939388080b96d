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

# Of each family: with thresholds that learn, gates that do, scores of batches, and factors.
OF_EACH_KIND = ["ltp", "mrts", "taylor", "flop", "toy gates", "toy channel gates"]


@pytest.mark.parametrize("method", OF_EACH_KIND)
def test_with_accumulation(method: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"accumulate_grad_batches": 2}
    module, _, _ = run(tmp_path / "whole", method, callbacks=[keep_all(tmp_path)], **options)
    again, _, _ = run(tmp_path / "again", method, ckpt_path=tmp_path / "step=6.ckpt", **options)
    assert equal(module, again)


@pytest.mark.parametrize("method", OF_EACH_KIND)
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


def test_from_a_checkpoint_of_a_run_that_was_resumed_at_an_epochs_last_batch(tmp_path: Path) -> None:
    """Lightning's own count of epochs is one short in such a run; see `callbacks.trainer.count_epoch`."""
    module, _, _ = fit(tmp_path / "whole", LTPCallback, callbacks=[keep_all(tmp_path / "one", every=8)])
    once, _, _ = fit(
        tmp_path, LTPCallback, callbacks=[keep_all(tmp_path / "two")], ckpt_path=tmp_path / "one" / "step=8.ckpt"
    )
    assert equal(module, once)
    for step in (12, 30):  # in the first epoch of the resumed run, and in a later one
        twice, callback, run = fit(tmp_path, LTPCallback, ckpt_path=tmp_path / "two" / f"step={step}.ckpt")
        assert callback.seen == run.global_step == 48
        assert equal(module, twice), step


class Removal(lightning.Callback):
    """After how many batches the units were gone."""

    seen = 0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        callback = trainer.callbacks[0]
        if callback.stage == "pruned" and not self.seen:
            self.seen = callback.seen


@pytest.mark.parametrize(("step", "batch_size"), [(24, 16), (18, 16), (15, 16), (15, 4)])
def test_with_another_batch_size_the_phases_move_with_the_epochs(step: int, batch_size: int, tmp_path: Path) -> None:
    """Of 8 batches an epoch before: at its end, in its first half, past what it has now, and shorter ones."""
    fit(tmp_path, LTPCallback, callbacks=[keep_all(tmp_path)])
    now, removal = 64 // batch_size, Removal()
    with pytest.warns(UserWarning, match=f"had 8 batches an epoch and this one has {now} .* cannot end in the same"):
        _, callback, run = fit(
            tmp_path,
            LTPCallback,
            callbacks=[removal],
            data=loaders(batch_size),
            ckpt_path=tmp_path / f"step={step}.ckpt",
        )
    assert run.current_epoch == 6
    assert callback.seen == callback.phases.total == 6 * now
    assert removal.seen == 4 * now


def test_with_another_batch_size_steps_are_steps(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    length: dict[str, Any] = {
        "max_epochs": -1,
        "max_steps": 48,
        "options": {"warmup": "8 steps", "sparsify": "24 steps"},
    }
    fit(tmp_path, LTPCallback, callbacks=[keep_all(tmp_path)], **length)
    removal = Removal()
    _, callback, _ = fit(
        tmp_path, LTPCallback, callbacks=[removal], data=loaders(16), ckpt_path=tmp_path / "step=15.ckpt", **length
    )
    assert callback.seen == 48
    assert removal.seen == 32
    assert not [w for w in recwarn if "batches an epoch" in str(w.message)]


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
