"""What a Trainer is told: how long, how much of the data, how it checks itself."""

from __future__ import annotations

from datetime import timedelta

from torch.utils.data import DataLoader

from tests.callbacks.situations.cell import Situation
from tests.toy import samples

NO_LENGTH = {"all": r"PhaseError: The training has no known length .* Set max_steps"}


def unshuffled() -> dict[str, DataLoader[object]]:
    return {"train_dataloaders": DataLoader(samples(32), 8), "val_dataloaders": DataLoader(samples(32, seed=1), 16)}


SITUATIONS: dict[str, Situation] = {
    "fast_dev_run": Situation(trainer=lambda: {"fast_dev_run": 4}),
    "limits in batches": Situation(trainer=lambda: {"limit_train_batches": 2, "limit_val_batches": 1}),
    "limits as shares": Situation(trainer=lambda: {"limit_train_batches": 0.5, "limit_val_batches": 0.5}),
    "no validation": Situation(trainer=lambda: {"limit_val_batches": 0}),
    "max_steps": Situation(
        trainer=lambda: {"max_epochs": -1, "max_steps": 16}, options={"all": {"warmup": 0.2, "sparsify": 0.4}}
    ),
    "less than an epoch": Situation(
        trainer=lambda: {"max_epochs": -1, "max_steps": 3}, options={"all": {"warmup": 0, "sparsify": "2 steps"}}
    ),
    "max_time and epochs": Situation(trainer=lambda: {"max_time": timedelta(hours=1)}),
    "max_time alone": Situation(trainer=lambda: {"max_epochs": -1, "max_time": timedelta(hours=1)}, refused=NO_LENGTH),
    "overfit_batches": Situation(trainer=lambda: {"overfit_batches": 2}, data=unshuffled),
    "reload_dataloaders_every_n_epochs": Situation(trainer=lambda: {"reload_dataloaders_every_n_epochs": 1}),
    "val_check_interval": Situation(trainer=lambda: {"val_check_interval": 3}),
    "check_val_every_n_epoch": Situation(trainer=lambda: {"check_val_every_n_epoch": 2}),
    "sanity check": Situation(trainer=lambda: {"num_sanity_val_steps": 1}),
    "barebones": Situation(
        trainer=lambda: {
            "barebones": True,
            "enable_checkpointing": None,
            "logger": None,
            "log_every_n_steps": None,
            "enable_progress_bar": None,
            "enable_model_summary": None,
        }
    ),
    "detect_anomaly": Situation(trainer=lambda: {"detect_anomaly": True}),
    "inference_mode off": Situation(trainer=lambda: {"inference_mode": False}),
    "no warm-up": Situation(options={"all": {"warmup": 0}}),
    "one shot after the warm-up": Situation(options={"all": {"sparsify": 0}}),
    "one shot at once": Situation(options={"all": {"warmup": 0, "sparsify": 0}}),
}
