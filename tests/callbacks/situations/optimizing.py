"""How steps are taken: by whom, on how many batches, in which precision, by which optimizer and schedule."""

from __future__ import annotations

from functools import partial

import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.plugins import MixedPrecision

from tests.callbacks.situations import modules
from tests.callbacks.situations.cell import Situation
from tests.callbacks.test_gradients import Manual as ByHand
from tests.callbacks.test_gradients import TwoOptimizers
from tests.callbacks.test_refused import Raw
from tests.toy import Toy

BY_HAND = {"steps": r"optimizes by hand .* nobody would read"}
LBFGS = {"all": r"NotImplementedError: LBFGS .* first-order optimizer"}
# Scores, and penalties that act after a step, do without the hooks.
HOOKS = r"SGD.step\(\) ran without Lightning's hooks"
RAW = dict.fromkeys(["weights", "flop", "toy channel gates", "from scratch", "mrts gates"], HOOKS) | BY_HAND
sgd = partial(torch.optim.SGD, lr=0.05, momentum=0.9)

SITUATIONS: dict[str, Situation] = {
    "automatic": Situation(),
    "manual": Situation(modules.Manual, refused=BY_HAND),
    "manual, accumulated by hand": Situation(ByHand, refused=BY_HAND),
    "manual, two optimizers": Situation(TwoOptimizers, network="net", refused=BY_HAND),
    "manual, raw optimizer": Situation(Raw, refused=RAW, shown="step"),
    "accumulation": Situation(trainer=lambda: {"accumulate_grad_batches": 3}),
    "accumulation by schedule": Situation(beside=lambda _: [GradientAccumulationScheduler({0: 1, 2: 2, 3: 4})]),
    "clipping by norm": Situation(trainer=lambda: {"gradient_clip_val": 0.05}),
    "clipping by value": Situation(
        trainer=lambda: {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
        refused={"from scratch": "cannot clip none of them by value"},
    ),
    "bf16-mixed": Situation(trainer=lambda: {"precision": "bf16-mixed"}),
    "bf16-true": Situation(trainer=lambda: {"precision": "bf16-true"}),
    "16-mixed": Situation(trainer=lambda: {"plugins": [MixedPrecision("16-mixed", "cpu")]}),
    "64-true": Situation(trainer=lambda: {"precision": "64-true"}),
    "SGD": Situation(lambda: modules.Optimized(sgd)),
    "AdamW, fused": Situation(lambda: modules.Optimized(partial(torch.optim.AdamW, lr=0.01, fused=True))),
    "Adafactor": Situation(lambda: modules.Optimized(partial(torch.optim.Adafactor, lr=0.05))),
    "Muon and SGD by hand": Situation(modules.MuonAndSGD, refused=BY_HAND),
    "timm's Muon": Situation(lambda: modules.Optimized(modules.timm_muon)),
    "LBFGS": Situation(lambda: modules.Optimized(torch.optim.LBFGS), refused=LBFGS),
    "AdamW and OneCycle": Situation(lambda: Toy(optimizer="adamw")),
    "SGD and OneCycle": Situation(lambda: modules.Optimized(sgd, modules.one_cycle)),
    "ReduceLROnPlateau": Situation(lambda: modules.Optimized(sgd, modules.plateau)),
}
