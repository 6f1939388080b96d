"""Wrong arguments and unsupported settings: each message names the value and the way out."""

import lightning
import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn
from torch.nn import functional as F

from lightning_prune import LTPCallback, MagnitudeCallback
from lightning_prune.callbacks.phases import Phases, Training, resolve_phases
from lightning_prune.errors import BudgetError, PhaseError
from lightning_prune.masks import find_targets
from tests.toy import Toy, loaders, network, ours_left_on, trainer

ARGUMENTS = [
    (LTPCallback, {"target_sparsity": 1.0}, r"target_sparsity=1.0 must be at least 0 and below 1"),
    (LTPCallback, {"target_sparsity": -0.5}, r"target_sparsity=-0.5"),
    (LTPCallback, {"target_compression": 0.5}, r"target_compression=0.5 must be at least 1"),
    (LTPCallback, {"target_sparsity": 0.9, "target_compression": 10}, r"target_compression=10 say the same thing"),
    (LTPCallback, {"lam": -1e-6}, r"lam=-1e-06 must not be negative"),
    (LTPCallback, {"mode": "raw"}, r"mode='raw' must be 'normalized' or 'paper'"),
    (LTPCallback, {"mode": "paper"}, r"mode='paper' needs lam and threshold_lr"),
    (LTPCallback, {"temperature": 0.0}, r"temperature=0.0 must be positive"),
    (LTPCallback, {"min_keep": 1.5}, r"min_keep=1.5 is a share"),
    (LTPCallback, {"trail": [0.5, 1.5]}, r"\[1.5\] are not kept shares"),
    (MagnitudeCallback, {"schedule": "linear"}, r"schedule='linear' must be 'cubic' or 'oneshot'"),
    (MagnitudeCallback, {"target_sparsity": 1.0}, r"target_sparsity=1.0"),
]


@pytest.mark.parametrize(("cls", "arguments", "message"), ARGUMENTS, ids=lambda x: str(x)[:40])
def test_wrong_arguments(cls, arguments, message):
    with pytest.raises(ValueError, match=message):
        cls(**arguments)


FITS = [
    ({"include": ["blocks.*"]}, {}, ValueError, r"include pattern 'blocks.\*' matches no prunable weight.*like 'net"),
    ({"exclude": ["nett.0"]}, {}, ValueError, r"exclude pattern 'nett.0' matches no prunable weight.*'net.0"),
    ({"warmup": 4, "sparsify": 4}, {}, PhaseError, r"warmup=4 \+ sparsify=4 take 64 batches, but the training has 48"),
    ({"sparsify": 2, "finetune": 9}, {}, PhaseError, r"finetune=9 take 88 batches"),
    ({"sparsify": "5 parsecs"}, {}, PhaseError, r"sparsify='5 parsecs': a duration in words looks like '300 steps'"),
    ({"warmup": -1}, {}, PhaseError, r"warmup=-1 must not be negative"),
    ({"sparsify": 1.5}, {}, PhaseError, r"sparsify=1.5: a float is a share"),
    ({}, {"max_epochs": -1}, PhaseError, r"no known length \(max_epochs=-1"),
    (
        {"target_sparsity": 0.99, "min_keep": 0.05},
        {},
        BudgetError,
        r"min_keep per layer alone keeps.*net.3.weight \(58 of 1152\)",
    ),
]


@pytest.mark.parametrize(("arguments", "options", "error", "message"), FITS, ids=lambda x: str(x)[:40])
def test_wrong_fits(arguments, options, error, message, tmp_path):
    module = Toy()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    with pytest.raises(error, match=message):
        trainer(tmp_path, [LTPCallback(**arguments)], **options).fit(module, **loaders())
    assert not ours_left_on(module)
    assert all(
        torch.equal(before[k], v) for k, v in module.state_dict().items() if "running" not in k and "num" not in k
    )


class Raw(Toy):
    """Steps the raw torch optimizer, so Lightning's hooks never run."""

    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        x, y = batch
        optimizer = self.optimizers(use_pl_optimizer=False)
        optimizer.zero_grad()
        F.cross_entropy(self(x), y).backward()
        optimizer.step()


@pytest.mark.parametrize("sparsify", [3, 0])
def test_raw_optimizer_is_detected(sparsify, tmp_path):
    module = Raw()
    callback = MagnitudeCallback(sparsify=sparsify)
    with pytest.raises(RuntimeError, match=r"SGD.step\(\) ran without Lightning's hooks.*self.optimizers\(\)"):
        trainer(tmp_path, [callback], num_sanity_val_steps=0).fit(module, **loaders())
    assert not ours_left_on(module)


class Lbfgs(Toy):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters())


def test_lbfgs_is_refused(tmp_path):
    with pytest.raises(NotImplementedError, match=r"LBFGS evaluates the loss several times.*first-order"):
        trainer(tmp_path, [LTPCallback()]).fit(Lbfgs(), **loaders())


def test_sharding_strategies_are_refused():
    class Fake:
        strategy = object.__new__(FSDPStrategy)

    with pytest.raises(NotImplementedError, match=r"LTPCallback does not support FSDPStrategy.*strategy='ddp'"):
        LTPCallback().setup(Fake(), Toy(), "fit")


class Nothing(Toy):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64))


def test_a_model_with_nothing_to_prune_raises(tmp_path):
    with pytest.raises(ValueError, match=r"Nothing has no conv or linear weight"):
        trainer(tmp_path, [LTPCallback()]).fit(Nothing(), **loaders())
    with pytest.raises(ValueError, match=r"all 3 weights were left out .*frozen"):
        find_targets(network().requires_grad_(False))


def test_what_cannot_be_pruned_is_listed_with_its_reason():
    net = network()
    net[0].requires_grad_(False)
    nn.utils.parametrizations.weight_norm(net[3])
    targets, skipped = find_targets(net)
    assert [t.name for t in targets] == ["8.weight"]
    reasons = dict(skipped)
    assert "frozen" in reasons["0.weight"]
    assert "parametrization" in reasons["3.weight"]


def test_an_optimizer_that_moves_pruned_weights_is_caught(tmp_path):
    class Noisy(torch.optim.SGD):
        def step(self, closure=None):
            loss = super().step(closure)
            for group in self.param_groups:
                for p in group["params"]:
                    p.data.add_(1e-3)
            return loss

    module = Toy()
    module.configure_optimizers = lambda: Noisy(module.parameters(), lr=0.01)
    with pytest.raises(RuntimeError, match=r"Pruned weights came back in net.0.weight"):
        trainer(tmp_path, [LTPCallback(sparsify=2)]).fit(module, **loaders())


def test_a_module_that_cannot_be_called_is_pruned_with_a_warning(tmp_path):
    class NoForward(Toy):
        def forward(self, *args):
            raise NotImplementedError("no forward here")

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.net(batch[0]), batch[1])

    callback = LTPCallback(sparsify=2)
    with pytest.warns(UserWarning, match=r"no forward here.*Override `calibration_forward`"):
        trainer(tmp_path, [callback], max_epochs=3, limit_val_batches=0).fit(
            NoForward(), loaders()["train_dataloaders"]
        )
    assert callback.stage == "pruned"


def test_a_cliff_at_the_prune_is_warned_of(tmp_path):
    class Cliff(LTPCallback):
        def score(self, units):
            return -super().score(units)  # keeps the weights that the soft network had dropped

    with pytest.warns(UserWarning, match=r"The removal cost .* of accuracy on 20 training batches"):
        trainer(tmp_path, [Cliff(sparsify=5)], max_epochs=7).fit(Toy(), **loaders())


def test_stuck_thresholds_and_emptying_layers_are_warned_of(tmp_path):
    class Frozen(LTPCallback):
        def learn(self, stats, active):
            super().learn(stats, active)
            self._u.fill_(100.0)
            self._cool()

    with (
        pytest.warns(UserWarning, match="thresholds have stopped moving. Raise the temperature"),
        pytest.warns(UserWarning, match=r"net.3.weight is about to empty: 0 of 1152 weights are left, its floor is 12"),
    ):
        trainer(tmp_path, [Frozen(lam=1.0, sparsify=3)]).fit(Toy(), **loaders())


PER_EPOCH, TOTAL = 10, 100
PHASES = [
    ((0, 0.6, None), (0, 60)),
    ((0, 0.6, 0.4), (0, 60)),
    ((2, 5, None), (20, 70)),
    ((2, 5, 3), (20, 70)),
    ((0.04, 0.5, None), (4, 54)),  # too short for an epoch: batches
    ((0.17, 0.5, None), (20, 70)),  # near an epoch boundary: there
    (("5 steps", "30 steps", None), (10, 70)),  # two batches a step
    ((0, 1.0, None), (0, 100)),
    ((0, 0, None), (0, 0)),
]


@pytest.mark.parametrize(("durations", "expected"), PHASES)
def test_phases(durations, expected):
    phases = resolve_phases(*durations, Training(10, PER_EPOCH, TOTAL, accumulate=2))
    assert (phases.begin, phases.prune) == expected


def test_phase_and_progress_are_functions_of_the_batch_count():
    phases = Phases(begin=10, prune=30, total=50)
    assert [phases.at(n) for n in (0, 9, 10, 29, 30, 49)] == ["warmup"] * 2 + ["sparsify"] * 2 + ["finetune"] * 2
    assert [phases.progress(n) for n in (0, 10, 20, 30, 45)] == [0, 0, 0.5, 1, 1]


def test_include_patterns():
    def names(**patterns):
        return [t.name for t in find_targets(network(), **patterns)[0]]

    assert names(include=["0", "8.weight"]) == ["0.weight", "8.weight"]
    assert names(exclude=["[03]"]) == ["8.weight"]
    assert names(skip_first=True, skip_last=True) == ["3.weight"]


def test_timm_stem_and_classifier_are_known():
    import timm

    model = timm.create_model("test_efficientnet")
    everything = [t.name for t in find_targets(model)[0]]
    inner = [t.name for t in find_targets(model, skip_first=True, skip_last=True)[0]]
    assert set(everything) - set(inner) == {"conv_stem.weight", "classifier.weight"}
    assert lightning  # the package under test needs no more than timm's own config
