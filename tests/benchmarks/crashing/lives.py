"""A training that is killed and goes on from its last whole checkpoint, and one that is not: they must end alike."""

from __future__ import annotations

import pickle
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils import _pytree as pytree

from lightning_prune import plan_of
from tests.benchmarks.crashing.deaths import BATCHES, EVERY, Death, deaths, prepare
from tests.callbacks.methods import run
from tests.callbacks.processes import start
from tests.toy import loaders

PATIENCE = 300.0  # seconds of a life, on a busy machine


@dataclass
class Outcome:
    """What a case came to.

    Attributes:
        kills: how often the process died.
        resumed: stages of the checkpoints that it went on from; "nothing" where there was none yet.
        torn: files that were cut off, and refused.
        failure: what is not as it should be, or nothing.
    """

    kills: int
    resumed: list[str]
    torn: int
    failure: str = ""


def checkpoint_of(path: Path) -> dict[str, Any] | None:
    """A checkpoint, or None where the file is not a whole one."""
    try:
        return torch.load(path, weights_only=True)  # type: ignore[no-any-return]
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError):
        return None


def last_whole(folder: Path) -> tuple[Path | None, str, int]:
    """The checkpoint of most steps, the stage it is from, and how many files are none."""
    found = {path: checkpoint_of(path) for path in sorted(folder.glob("*.ckpt"))}
    whole = {path: state for path, state in found.items() if state is not None}
    torn = len(found) - len(whole)
    if not whole:
        return None, "nothing", torn
    path = max(whole, key=lambda p: (whole[p]["global_step"], p.name))
    stage = next(s["stage"] for s in whole[path]["callbacks"].values() if isinstance(s, dict) and "stage" in s)
    return path, stage, torn


def live(method: str, folder: Path, death: Death | None, seconds: float, ckpt_path: Path | None) -> None:
    """One life, in a process of its own: up to the death, or to the end, of which it leaves a file."""
    callbacks = [] if death is None else prepare(death, seconds)
    saver = ModelCheckpoint(dirpath=folder, filename="{step}", every_n_train_steps=EVERY, save_top_k=-1, save_last=True)
    begin = time.process_time()
    module, callback, trainer = run(
        folder, method, callbacks=[*callbacks, saver], data=loaders(n=8 * BATCHES), ckpt_path=ckpt_path
    )
    plan = plan_of(module)
    end = {
        "seconds": time.process_time() - begin,
        "weights": module.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
        "callback": callback.state_dict(),
        "plan": None if plan is None else plan.to_json(),
    }
    torch.save(end, folder / "end.pt")


def whole_life(method: str, folder: Path) -> dict[str, Any]:
    """What a training ends with that nothing happens to."""
    folder.mkdir(parents=True, exist_ok=True)
    code = start(live, method, folder, None, 0.0, None).wait(PATIENCE)
    assert code == 0, f"{method}: a life without a death ended with code {code}"
    return torch.load(folder / "end.pt", weights_only=True)  # type: ignore[no-any-return]


def judge(method: str, kind: str, number: int, folder: Path, whole: dict[str, Any]) -> Outcome:
    """Kills and resumes a training as a case asks for, and compares its end with the whole one's."""
    folder.mkdir(parents=True)
    outcome, fates, torn = Outcome(0, [], 0), [*deaths(method, kind, number), None], 0
    for life, death in enumerate(fates):
        path, stage, torn = last_whole(folder)
        outcome.torn = max(outcome.torn, torn)
        if life:
            outcome.resumed.append(stage)
        code = start(live, method, folder, death, whole["seconds"], path).wait(PATIENCE)
        if code > 0:
            outcome.failure = f"life {life + 1} ended with an error (code {code})"
            return outcome
        outcome.kills += code < 0
        if code == 0:
            break
    end = torch.load(folder / "end.pt", weights_only=True)
    outcome.failure = difference(whole, end)
    return outcome


def difference(whole: dict[str, Any], end: dict[str, Any]) -> str:
    """The first value of two ends that is not equal bit for bit, or nothing."""
    (ours, one), (theirs, two) = (pytree.tree_flatten_with_path({**e, "seconds": 0.0}) for e in (whole, end))
    if one != two:
        return "another structure"
    for (path, a), (_, b) in zip(ours, theirs, strict=True):
        if torch.is_tensor(a):
            same = torch.is_tensor(b) and a.dtype == b.dtype and torch.equal(a, b)
        else:
            same = a == b or (a != a and b != b)
        if not same:
            return f"another value of {pytree.keystr(path)}"
    return ""
