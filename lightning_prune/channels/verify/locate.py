"""Names the layer where a sliced model goes wrong. Runs only after a check has failed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_prune.channels.surgery.cut import set_attributes
from lightning_prune.channels.surgery.denominators import standing_in
from lightning_prune.channels.surgery.retrace import at_least_two
from lightning_prune.channels.verify.compare import exact_dtypes, random_like, run, untouched
from lightning_prune.channels.verify.tensors import Reader, fresh, masked, reader, sliced, without_zeros
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
    for key, reference in expected.items():
        if key not in found:
            continue
        path = key[0]
        cut = plan.cuts.get(f"{path}.weight")
        kept = cut.kept.get(0) if cut else None
        reference = reference[torch.tensor(kept, dtype=torch.int64)] if kept is not None else reference
        if reference.shape != found[key].shape or not torch.allclose(reference, found[key], rtol=1e-6, atol=1e-9):
            return path
    return failed


def _record(model: nn.Module, read: Reader, batch: Any) -> tuple[dict[tuple[str, int], Tensor], str | None]:
    """Per-channel means of every output of a layer with a weight, and the module that raised, if one did."""
    sums: dict[tuple[str, int], Tensor] = {}
    entered: list[str] = []
    handles = []
    for path, module in model.named_modules():

        def before(m: nn.Module, a: Any, path: str = path) -> None:
            entered.append(path)

        def after(m: nn.Module, a: Any, out: Any, path: str = path) -> None:
            entered.pop()
            if isinstance(out, Tensor) and "weight" in m._parameters and out.ndim > 1:
                norm = getattr(m, "normalized_shape", ())
                last = hasattr(m, "in_features") or (norm and out.shape[-1] == norm[-1])
                channel = out.ndim - 1 if last else 1
                key = (path, sum(1 for k in sums if k[0] == path))
                sums[key] = out.detach().movedim(channel, 0).flatten(1).abs().mean(1)

        handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        run(model, read, batch)
        return sums, None
    except Exception:
        if not entered:
            raise
        return sums, entered[-1]
    finally:
        for handle in handles:
            handle.remove()
