"""What is LTP's own: the price, the paper's raw mode, the temperature, and what it logs."""

import csv

import lightning
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from lightning_prune import LTPCallback, MagnitudeCallback
from lightning_prune.functional import ltp
from tests.ltp_equations import soft_l0
from tests.toy import Toy, loaders, trainer, zeros


def test_without_a_target_the_price_decides(tmp_path):
    left = []
    for lam in (0.01, 0.3, 10.0):
        module = Toy()
        callback = LTPCallback(lam=lam, sparsify=0.7)
        trainer(tmp_path, [callback], max_epochs=20, limit_val_batches=0).fit(module, loaders()["train_dataloaders"])
        left.append(zeros(module))
    assert left == sorted(left)
    assert left[-1] > left[0] + 100


def test_paper_mode_is_plain_gradient_descent_on_raw_thresholds(tmp_path):
    """Each step of τ is exactly −η·dL/dτ at a constant T0·Var|w|, with λ as given."""
    lam, lr, t0 = 1e-3, 1e-5, 1e-2
    steps = []

    class Spy(LTPCallback):
        def learn(self, stats, active):
            before = self.thresholds().clone()
            slope, variance = self._slope.clone(), self._variance.clone()
            super().learn(stats, active)
            steps.append((before, slope, variance, stats.clone(), self.thresholds().clone()))

    weights = {}

    class Watch(lightning.Callback):
        def on_train_batch_start(self, trainer, pl_module, *args):
            weights.setdefault("first", [t.param.detach().clone() for t in callback.units.targets])

    callback = Spy(mode="paper", lam=lam, threshold_lr=lr, temperature=t0, sparsify=0.5)
    trainer(tmp_path, [callback, Watch()], max_epochs=2).fit(Toy(), **loaders())
    before, slope, _, stats, _ = steps[0]
    assert torch.equal(before, torch.zeros(3))
    for i, w in enumerate(weights["first"]):
        variance = ltp.variance_of_magnitude(w.numel(), w.abs().sum(), w.square().sum())
        assert slope[i].item() == pytest.approx(1 / (t0 * variance.item()), rel=1e-4)
        kept = soft_l0(w, 0.0, t0 * variance).item()
        assert stats[i, 2].item() == pytest.approx(kept, rel=1e-4)
    for before, _, _, stats, after in steps:
        expected = (before + lr * (stats[:, 0] + lam * stats[:, 1]).float()).clamp_min(0)
        torch.testing.assert_close(after, expected, rtol=1e-5, atol=1e-12)
    for _, slope, variance, _, _ in steps:
        torch.testing.assert_close(1 / (slope * variance), torch.full((3,), t0))
    assert len(steps) == 8


@pytest.mark.parametrize("schedule", ["exponential", "cosine"])
def test_temperature_is_a_function_of_progress(schedule, tmp_path):
    seen = []

    class Spy(LTPCallback):
        def learn(self, stats, active):
            super().learn(stats, active)
            seen.append((self.progress, self._t0()))

    callback = Spy(temperature_start=0.1, temperature=0.001, temperature_schedule=schedule, sparsify=1.0)
    trainer(tmp_path, [callback], max_epochs=3).fit(Toy(), **loaders())
    temperatures = [t for _, t in seen]
    assert temperatures[0] == pytest.approx(0.1)
    assert temperatures == sorted(temperatures, reverse=True)
    assert temperatures[-1] < 0.0015
    middle = min(seen, key=lambda x: abs(x[0] - 0.5))[1]
    assert middle == pytest.approx({"exponential": 0.01, "cosine": 0.0505}[schedule], rel=0.2)


KEYS = {"kept", "soft_kept", "compression", "sparsity", "band", "phase", "lambda", "temperature", "soft_loss"}


def test_everything_is_logged(tmp_path):
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    callback = LTPCallback(target_sparsity=0.8, warmup=1, sparsify=3)
    run = trainer(tmp_path, [callback], logger=logger)
    run.fit(Toy(), **loaders())
    with open(f"{logger.log_dir}/metrics.csv") as f:
        rows = list(csv.DictReader(f))

    def column(name):
        return [float(r[name]) for r in rows if r.get(name)]

    for key in KEYS:
        assert column(f"prune/{key}"), key
    sparsity = column("prune/sparsity")
    assert sparsity[0] == 0
    assert sparsity[-1] == pytest.approx(0.8, abs=1e-3)
    assert max(column("prune/phase")) == 2
    assert len(column("prune/layer/net.3.weight/sparsity")) == 5
    assert len(column("prune/layer/net.3.weight/tau")) == 2  # at the ends of the two epochs that end with soft masks
    assert column("prune/soft_accuracy")
    assert column("prune/hard_accuracy")
    assert "prune/sparsity" in run.progress_bar_metrics
    assert run.callback_metrics["prune/compression"].item() == pytest.approx(5, rel=1e-2)


def test_logged_sparsity_is_a_count(tmp_path):
    """In every logged step the number is what counting the weights under the threshold gives."""
    pairs = []

    class Count(lightning.Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            if callback.stage == "soft":
                logged = trainer.callback_metrics.get("prune/kept")
                if logged is not None:
                    pairs.append((float(logged), before["kept"]))

        def on_before_zero_grad(self, *args):
            pass

        def on_train_batch_start(self, *args):
            if callback.stage == "soft":
                before["kept"] = 1 - sum(callback.layer_zeros()) / callback.units.numel

    before: dict[str, float] = {"kept": 1.0}
    callback = LTPCallback(target_sparsity=0.8, sparsify=0.9)
    trainer(tmp_path, [callback, Count()]).fit(Toy(), **loaders())
    assert len(pairs) > 20
    for logged, counted in pairs:
        assert logged == pytest.approx(counted, abs=2 / callback.units.numel)


def test_histograms_are_opt_in(tmp_path):
    for every in (0, 2):
        logger = TensorBoardLogger(tmp_path, name=f"every{every}")
        tags = []
        add = logger.experiment.add_histogram
        logger.experiment.add_histogram = lambda tag, *a, add=add, tags=tags, **k: (tags.append(tag), add(tag, *a, **k))
        trainer(tmp_path, [MagnitudeCallback(histogram_every=every)], logger=logger).fit(Toy(), **loaders())
        assert len(tags) == (3 * 3 if every else 0)


def test_compiled_masks_train_to_the_same_thresholds(tmp_path):
    ends = []
    for fuse in (False, True):
        torch.manual_seed(0)
        module, callback = Toy(), LTPCallback(target_sparsity=0.8, sparsify=3, fuse=fuse)
        trainer(tmp_path, [callback]).fit(module, **loaders())
        ends.append((callback.final_thresholds, zeros(module)))
    assert ends[0][1] == ends[1][1]
    torch.testing.assert_close(ends[0][0], ends[1][0], rtol=1e-2, atol=1e-6)
