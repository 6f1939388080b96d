"""Names the layer where a sliced model goes wrong. Runs only after a check has failed."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lightning_prune.channels.surgery.cut import set_attributes
from lightning_prune.channels.surgery.denominators import standing_in
from lightning_prune.channels.surgery.retrace import at_least_two
from lightning_prune.channels.verify.compare import ROUNDING
from lightning_prune.channels.verify.layers import Seen, first_apart, watched
from lightning_prune.channels.verify.noise import without_zeros
from lightning_prune.channels.verify.runs import exact_dtypes, random_like, run, untouched
from lightning_prune.channels.verify.tensors import Reader, fresh, masked, reader, sliced
from lightning_prune.plan.plan import PruningPlan
from lightning_prune.support.modes import mode


def name_layer(model: nn.Module, path: str | None) -> str:
    """Names a module for people."""
    if path is None:
        return "a layer without parameters of its own"
    return f"{path or 'the model itself'} ({type(model.get_submodule(path)).__name__})"


def locate(model: nn.Module, plan: PruningPlan, example_input: Any, training: bool = False) -> str | None:
    """Returns the path of the first module that raises, or whose output differs; None if no layer shows it."""
    with untouched(model), mode(model, training, noise=False):
        dtype = exact_dtypes(model)[0]
        batch = random_like(at_least_two(example_input) if training else example_input, dtype)
        first = (without_zeros(model, plan), fresh)
        try:
            expected, _ = _record(model, reader(model, *first, masked(plan, dtype)), batch)
            set_attributes(model, plan.attributes)
            with standing_in(model, plan):
                found, failed = _record(model, reader(model, *first, sliced(plan, dtype)), batch)
        except Exception:
            return None
    tolerance = 1e-6 if dtype is torch.float64 else ROUNDING
    path = first_apart(expected, found, plan, tolerance)
    return failed if path is None else path


def _record(model: nn.Module, read: Reader, batch: Any) -> tuple[Seen, str | None]:
    """What the layers give, and the module that raised, if one did."""
    entered: list[str] = []
    handles = []
    for path, module in model.named_modules():

        def before(m: nn.Module, a: Any, path: str = path) -> None:
            entered.append(path)

        def after(m: nn.Module, a: Any, out: Any) -> None:
            entered.pop()

        handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        with watched(model) as seen:
            run(model, read, batch)
        return seen, None
    except Exception:
        if not entered:
            raise
        return seen, entered[-1]
    finally:
        for handle in handles:
            handle.remove()
