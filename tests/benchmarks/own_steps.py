r"""The claims of ANP-VS, SANP and TAS in small, on the bundled digits: one command each, paired by seed.

    python -m tests.benchmarks.own_steps robust  --out tests/benchmarks/robust.md
    python -m tests.benchmarks.own_steps dynamic --out tests/benchmarks/dynamic.md
    python -m tests.benchmarks.own_steps widths  --out tests/benchmarks/widths.md

Every method starts from the same dense network, and sees the same batches in the same order for as many epochs. Runs
are kept as lines under ``results/`` and are not trained twice.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import logging
import statistics
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor, nn

from lightning_prune import (
    PGD,
    ANPVSCallback,
    DistillationCallback,
    RobustAccuracy,
    SANPCallback,
    ScorePruningCallback,
    TASCallback,
    TimmClassifier,
    Vulnerability,
)
from lightning_prune.callbacks import calibrate
from lightning_prune.callbacks.methods.channels.anp_vs import BASELINES
from lightning_prune.callbacks.methods.channels.tas import DEPTHS
from lightning_prune.zoo.data import DigitsDataModule
from tests.benchmarks.bench.pipelines import publish
from tests.benchmarks.bench.table import interval

RESULTS = Path(__file__).parent / "results" / "own_steps.jsonl"
DENSE, SEARCH, FINETUNE = 6, 6, 4  # epochs
PIXEL = 1 / DigitsDataModule.std[0]  # a change of a whole pixel, in the network's units
EPS = 0.1 * PIXEL
BOUNDS = tuple((v - DigitsDataModule.mean[0]) * PIXEL for v in (0.0, 1.0))

BRANCHES = {f"layer{i}.{k}" for i in (1, 2, 3) for k in (0, 1, 2)}  # of ResNet-20

Values = dict[str, float]


def data(seed: int) -> DigitsDataModule:
    module = DigitsDataModule(image_size=8, batch_size=64, seed=seed)
    module.setup()
    return module


def build(lr: float) -> TimmClassifier:
    """ResNet-20 of half width."""
    return TimmClassifier("resnet20_cifar", model_kwargs={"width": 8}, optimizer="sgd", lr=lr, weight_decay=5e-4)


def fit(module: TimmClassifier, epochs: int, seed: int, callbacks: Iterable[Any] = ()) -> TimmClassifier:
    lightning.seed_everything(seed, verbose=False)
    trainer = lightning.Trainer(
        max_epochs=epochs, callbacks=list(callbacks), logger=False, enable_checkpointing=False, accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1000, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module, train_dataloaders=data(seed).train_dataloader())
    return module


def start(seed: int) -> TimmClassifier:
    """The dense network, trained once."""
    path = RESULTS.parent / "starts" / f"own_steps-{DENSE}-{seed}.pt"
    module = build(0.1)
    if not path.exists():
        lightning.seed_everything(seed, verbose=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(fit(build(0.1), DENSE, seed).state_dict(), path)
    module.load_state_dict(torch.load(path, weights_only=True))
    return module


def fresh(seed: int) -> TimmClassifier:
    """A network to prune, with the dense weights."""
    module = build(0.05)
    module.load_state_dict(start(seed).state_dict())
    return module


def test_batches(seed: int) -> list[tuple[Tensor, Tensor]]:
    return [(x, y) for x, y in data(seed).test_dataloader()]


def measured(metric: Any, network: nn.Module, seed: int) -> float:
    for x, y in test_batches(seed):
        metric.update(network, x, y)
    return float(metric.compute())


# ---- robust: ANP-VS against the paper's baselines -------------------------------------------------------------------


def robust(name: str, seed: int, seeds: list[int]) -> Values:
    options: dict[str, Any] = {"target_macs": 0.5, "warmup": 0, "sparsify": SEARCH, "mask_lr": 0.05}
    options |= {"eps": EPS, "attack_step": EPS / 2, "attack_steps": 3, "bounds": BOUNDS} | BASELINES[name]
    options.setdefault("suppress", 0.1)
    module, callback = fresh(seed), ANPVSCallback(**options)
    fit(module, SEARCH + FINETUNE, seed + 100, [callback])
    attack = PGD(EPS, EPS / 8, 20, BOUNDS)
    other = start(seeds[(seeds.index(seed) + 1) % len(seeds)])
    return {
        "clean": 100 * measured(RobustAccuracy(), module, seed),
        "white box": 100 * measured(RobustAccuracy(attack), module, seed),
        "black box": 100 * measured(RobustAccuracy(attack, source=other), module, seed),
        "vulnerability": measured(Vulnerability(attack), module, seed),
        "MACs left": callback.numbers["macs"],
    }


# ---- dynamic: SANP against a static network of the same cost --------------------------------------------------------


class Dynamic(lightning.Callback):
    """Accuracy and mean MACs of the dynamic network on the test images, right before the removal."""

    def __init__(self, callback: SANPCallback, seed: int) -> None:
        self.callback, self.seed = callback, seed
        self.accuracy = self.macs = float("nan")

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        assert self.callback.phases is not None
        if self.callback.seen == self.callback.phases.prune:
            batches = calibrate.calibration_batches(trainer, 20)
            calibrate.recalibrate(trainer, pl_module, batches, self.callback.calibration_forward)
            pl_module.eval()
            with torch.no_grad():
                right, costs = [], []
                for x, y in test_batches(self.seed):
                    right.append(pl_module(x).argmax(1) == y)
                    costs.append(self.callback.sample_macs())
            pl_module.train()
            self.accuracy, self.macs = 100 * float(torch.cat(right).float().mean()), float(torch.cat(costs).mean())


def dynamic(name: str, seed: int, seeds: list[int]) -> Values:
    budget, kind = name.split(", ")
    module, share = fresh(seed), float(budget)
    options: dict[str, Any] = {"warmup": 0, "sparsify": SEARCH, "target_macs": share}
    if kind == "SANP":
        sanp = SANPCallback(**options, spm_lr=0.01, price=20.0)
        watch = Dynamic(sanp, seed)
        fit(module, SEARCH + FINETUNE, seed + 100, [sanp, watch])
        static = 100 * measured(RobustAccuracy(), module, seed)
        return {
            "dynamic": watch.accuracy,
            "MACs per sample": watch.macs,
            "static": static,
            "MACs": sanp.numbers["macs"],
        }
    same = remembered("dynamic", f"{budget}, SANP", seed, seeds)["MACs per sample"]
    found = {}
    for column, left in (("dynamic", same), ("static", share)):  # of equal cost to each of SANP's
        module, callback = fresh(seed), ScorePruningCallback("taylor", **(options | {"target_macs": left}))
        fit(module, SEARCH + FINETUNE, seed + 100, [callback])
        found[column] = 100 * measured(RobustAccuracy(), module, seed)
        found["MACs per sample" if column == "dynamic" else "MACs"] = callback.numbers["macs"]
    return found


# ---- widths: TAS's search against the same share of every layer -----------------------------------------------------


def widths(name: str, seed: int, seeds: list[int]) -> Values:
    options: dict[str, Any] = {"warmup": 0, "sparsify": SEARCH, "target_macs": 0.35}
    if name.startswith("widths"):
        held = data(seed + 100).val_dataloader()
        depths = DEPTHS if "depths" in name else ()
        callback: Any = TASCallback(**options, held_out=held, width_lr=0.03, depths=depths)
    elif name.startswith("uniform"):
        callback = ScorePruningCallback("l2", scope="layer", **options)
    else:
        callback = ScorePruningCallback("taylor", **options)
    module = fresh(seed)
    with tempfile.TemporaryDirectory() as folder:
        more = [DistillationCallback(teacher=copy.deepcopy(module.model), teacher_dir=folder)] if "KD" in name else []
        fit(module, SEARCH + FINETUNE, seed + 100, [callback, *more])
    branches = len(BRANCHES - {path.removesuffix(".conv1") for path in callback.pruned.plan.empty})
    return {
        "accuracy": 100 * measured(RobustAccuracy(), module, seed),
        "MACs left": callback.numbers["macs"],
        "branches": float(branches),
    }


# ---- the command ----------------------------------------------------------------------------------------------------

Question = tuple[Callable[[str, int, list[int]], Values], list[str], str, str]
QUESTIONS: dict[str, Question] = {
    "robust": (
        robust, list(BASELINES), "ANP-VS",
        "Accuracy in per cent on the test digits: clean, under PGD on the network itself (white box) and on the dense "
        "network of another seed (black box), 20 steps of an eighth of a tenth of a pixel's range; and vulnerability, "
        "the mean distance of what layers read. All with half of the MACs; methods without masks lose the filters of "
        "least norm.",
    ),
    "dynamic": (
        dynamic, [f"{b}, {kind}" for b in (0.3, 0.5) for kind in ("SANP", "Taylor")], "",
        "Accuracy in per cent on the test digits. SANP's dynamic network, with its modules, beside a static network "
        "pruned by the Taylor score to as many MACs as a test sample needs on average there; and SANP's static "
        "network, which ships, beside one by the Taylor score at the budget. MACs are theoretical and no speed.",
    ),
    "widths": (
        widths,
        [f"{search}{kd}" for search in ("widths and depths", "widths", "uniform") for kd in ("", " + KD")] + ["Taylor"],
        "widths and depths",
        "Accuracy in per cent on the test digits at 0.35 of the MACs. TAS searches widths and depths, or widths alone, "
        "on the validation digits, which no other method trains on; uniform removes the same share of every layer, the "
        "filters of least norm. Branches: residual branches that are left, of 9.",
    ),
}  # fmt: skip


def remembered(question: str, name: str, seed: int, seeds: list[int]) -> Values:
    """What a run gave; it is trained if the file does not hold it."""
    key = {"question": question, "name": name, "seed": seed, "epochs": [DENSE, SEARCH, FINETUNE]}
    lines = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    for line in lines:
        if line["run"] == key:
            return dict(line["values"])
    values = QUESTIONS[question][0](name, seed, seeds)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with RESULTS.open("a") as file:
        file.write(json.dumps({"run": key, "values": values, "date": str(datetime.date.today())}) + "\n")
    print(name, seed, {k: round(v, 3) for k, v in values.items()}, flush=True)
    return values


def page(question: str, found: Mapping[str, list[Values]], seeds: list[int]) -> str:
    """Means over seeds, and where there is a reference how far it is above, paired by seed with 95 % intervals."""
    _, names, reference, text = QUESTIONS[question]
    columns = list(found[names[0]][0])
    lines = ["| | " + " | ".join(columns) + " |", "|" + "---|" * (len(columns) + 1)]
    for name in names:
        cells = []
        for column in columns:
            values = [v[column] for v in found[name] if column in v]
            if not values:
                cells.append("–")
                continue
            cell = f"{statistics.mean(values):.3g}" if max(values) < 10 else f"{statistics.mean(values):.1f}"
            if reference and name != reference and column not in ("MACs left", "branches") and len(seeds) > 1:
                mean, half = interval([a[column] - b for a, b in zip(found[reference], values, strict=True)])
                cell += f" ({mean:+.3g} ± {half:.2g})"
            cells.append(cell)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    told = f" In brackets how far {reference} is above, paired by seed, with the 95 % interval." if reference else ""
    return (
        f"{text}{told}\n\nResNet-20 of half width at 8 pixels, {DENSE} dense epochs, then {SEARCH} + {FINETUNE}; "
        f"seeds {seeds}, {datetime.date.today()}.\n\n" + "\n".join(lines) + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", choices=list(QUESTIONS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, help="page to write")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning_prune"):
        logging.getLogger(name).setLevel(logging.ERROR)
    names = QUESTIONS[args.question][1]
    found = {name: [remembered(args.question, name, seed, args.seeds) for seed in args.seeds] for name in names}
    publish(page(args.question, found, args.seeds), args.out)


if __name__ == "__main__":
    main()
