"""What structured methods refuse or leave alone, with the reason."""

import lightning
import pytest
from torch import nn

from lightning_prune import MRTSCallback, PlanError
from tests.callbacks.structured import METHODS, fit
from tests.toy import Toy


@pytest.fixture(params=METHODS)
def method(request):
    return METHODS[request.param]


def test_no_batchnorm_points_to_ltp(method, tmp_path):
    module = Toy()
    module.net[1] = module.net[4] = nn.Identity()
    with pytest.raises(ValueError, match=r"has none.*LTPCallback"):
        fit(tmp_path, method, module)


def test_a_budget_out_of_reach_names_the_layers(method, tmp_path):
    with pytest.raises(PlanError, match=r"target_macs=0.01 cannot be met: .*Raise the target"):
        fit(tmp_path, method, options={"target_macs": 0.01, "min_keep": 0.5})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_macs": 1.5}, "target_macs=1.5"),
        ({"target_macs": 0.5, "delta": 0.1}, "target_macs=0.5, delta=0.1: give one"),
        ({"rule": "otsu"}, "rule='otsu'"),
        ({"delta": 3.0, "rule": "css"}, "delta=3.0"),
        ({"min_keep": 1.0}, "min_keep=1.0"),
        ({"divisor": 0}, "divisor=0"),
        ({"after": "rewind"}, "after='rewind'"),
        ({"surgery": {"divsor": 8}}, r"surgery has \['divsor'\]"),
        ({"tau": -1}, "tau=-1"),
        ({"information": "kl"}, "information='kl'"),
        ({"mode": "paper"}, "needs lam"),
        ({"travel": -1.0}, "travel=-1.0"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        MRTSCallback(**options)


@pytest.mark.parametrize("noise", [0.34, 1.0])
def test_noise_that_cannot_polarise_is_refused_with_the_reason(noise):
    with pytest.raises(ValueError, match=r"noise=.* does not polarise with tau=1.5: from 1/\(2·tau\) = 0.333"):
        MRTSCallback(noise=noise)


def test_an_exception_leaves_nothing_on_the_module_and_a_second_fit_works(method, tmp_path):
    class Fails(lightning.Callback):
        def on_train_batch_end(self, trainer, *args):
            if trainer.global_step == 20:
                raise RuntimeError("in mid-phase")

    module = Toy()
    with pytest.raises(RuntimeError, match="in mid-phase"):
        fit(tmp_path, method, module, callbacks=[Fails()])
    assert not any(key.startswith("on_") for key in vars(module))
    module, callback, _ = fit(tmp_path, method, module)
    assert callback.stage == "pruned"


def test_a_norm_of_one_channel_stays_and_is_named(method, tmp_path):
    module = Toy()
    module.net[0], module.net[1] = nn.Conv2d(1, 1, 3, padding=1), nn.BatchNorm2d(1)
    module.net[3] = nn.Conv2d(1, 16, 3, stride=2)
    with pytest.warns(UserWarning, match="1: it has one channel"):
        module, callback, _ = fit(tmp_path, method, module)
    assert callback.numbers["macs"] <= 0.5
