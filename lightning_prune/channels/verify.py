"""Proof on the spot: the sliced model computes what the masked model computes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from lightning_prune.channels.graph import mode, split_input
from lightning_prune.channels.surgery import set_attributes, state_tensors, take
from lightning_prune.plan import PruningPlan

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 1e-1}
"""Largest allowed difference, relative to the largest output, by the dtype that the check ran in."""

LARGEST_EXACT = 1 << 26
"""Models with more parameters than this (67 million) are checked in their own dtype, to save memory."""


@dataclass(frozen=True)
class Proof:
    """What the check on a random batch found.

    Attributes:
        difference: largest |masked - sliced| relative to the largest |masked|.
        effect: largest |masked - dense| relative to the largest |dense|: how much the masking itself changes.
        dtype: what the check was computed in.
        tolerance: the largest allowed difference.
    """

    difference: float
    effect: float
    dtype: torch.dtype
    tolerance: float

    @property
    def equal(self) -> bool:
        """Whether sliced == masked within the tolerance."""
        return self.difference <= self.tolerance

    def __str__(self) -> str:
        return (
            f"masked == sliced within {self.difference:.1e} ({self.dtype}, tolerance {self.tolerance:.0e}); "
            f"the masking changes the output by {self.effect:.1e}"
        )


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Eval mode with empty tensor caches inside; every plain attribute is put back after.

    Some models cache tensors in eval mode (attention biases). A cached tensor would hide a masked parameter here, and
    a tensor of the check must not stay in the user's model.
    """
    saved = []
    for module in model.modules():
        saved.append((module, dict(vars(module))))
        for name, value in vars(module).items():
            if (
                isinstance(value, dict)
                and not name.startswith("_")
                and any(isinstance(v, Tensor) for v in value.values())
            ):
                module.__dict__[name] = {}
            elif isinstance(value, dict) and not name.startswith("_"):
                module.__dict__[name] = dict(value)
    try:
        with mode(model, False), torch.no_grad():
            yield
    finally:
        for module, before in saved:
            for name in [n for n in vars(module) if n not in before]:
                del module.__dict__[name]
            module.__dict__.update({n: v for n, v in before.items() if n != "training"})


def random_like(example_input: Any, dtype: torch.dtype | None, seed: int = 0) -> Any:
    """A random batch in the shapes of the example; integer inputs are taken as they are."""
    generator = torch.Generator().manual_seed(seed)

    def draw(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        return noise.to(device=value.device, dtype=dtype or value.dtype)

    return pytree.tree_map(draw, example_input)


def awake(model: nn.Module, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """A copy of the model's state in which nothing is switched off.

    A scale factor of zero (a zero-initialised last norm, a pruned channel) hides every mistake behind it, so the copy
    has ones there, and small random numbers in rows of weights (and in vectors) that are zero throughout.
    """
    generator = torch.Generator().manual_seed(1)
    state: dict[str, Tensor] = {}
    norms = {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for name, tensor in state_tensors(model).items():
        if not tensor.is_floating_point():
            state[name] = tensor
            continue
        value = tensor.detach().to(dtype or tensor.dtype, copy=True)
        if name in norms:
            value[value == 0] = 1.0
        elif name in parameters and value.ndim:
            off = (value == 0).flatten(1).all(1) if value.ndim > 1 else (value == 0).all().expand(len(value))
            if bool(off.any()):
                noise = 0.1 * torch.randn(value.shape, generator=generator, dtype=torch.float64)
                value[off] = noise.to(value)[off]
        state[name] = value
    return state


def mask(state: dict[str, Tensor], plan: PruningPlan) -> dict[str, Tensor]:
    """Sets every removed entry to zero, in place: outputs of the removed channels and what consumes them."""
    for name, cut in plan.cuts.items():
        value = state[name]
        for dim, kept in cut.kept.items():
            gone = torch.ones(cut.shape[dim], dtype=torch.bool)
            gone[torch.tensor(kept)] = False
            value.index_fill_(dim, gone.nonzero().flatten().to(value.device), 0)
    return state


def slice_(state: dict[str, Tensor], plan: PruningPlan) -> dict[str, Tensor]:
    """Drops every removed entry, tensor by tensor, so that two whole copies never stand side by side."""
    for name, cut in plan.cuts.items():
        state[name] = take(state[name], cut)
    return state


def run(model: nn.Module, state: dict[str, Tensor], example: Any) -> list[Tensor]:
    """Runs a model with another state; returns the floating-point outputs."""
    args, kwargs = split_input(example)
    out = functional_call(model, state, args, kwargs, tie_weights=False)
    return [t for t in pytree.tree_leaves(out) if isinstance(t, Tensor) and t.is_floating_point()]


def distance(first: list[Tensor], second: list[Tensor]) -> float:
    """Largest absolute difference, relative to the largest absolute value of `first`; inf if shapes differ."""
    worst = 0.0
    for a, b in zip(first, second, strict=True):
        if a.shape != b.shape:
            return float("inf")
        scale = float(a.abs().max()) if a.numel() else 0.0
        gap = float((a - b).abs().max()) if a.numel() else 0.0
        worst = max(worst, gap / scale if scale > 0 else gap)
        if not (bool(a.isfinite().all()) and bool(b.isfinite().all())):
            return float("inf")
    return worst


def exact_dtypes(model: nn.Module) -> tuple[torch.dtype | None, ...]:
    """float64 first, unless a copy in it would be larger than the machine should bear; then the model's own dtype."""
    size = sum(p.numel() for p in model.parameters())
    return (torch.float64, None) if size <= LARGEST_EXACT else (None,)


def check_eager(
    model: nn.Module, plan: PruningPlan, example_input: Any, runner: Callable[..., list[Tensor]] = run
) -> Proof:
    """Compares masked and sliced without changing the model: the states are passed from outside.

    Args:
        runner: how to run the sliced state; by default the model itself with the plan's attributes set.

    Raises:
        Exception: whatever the sliced model raises.
    """

    def reference(state: dict[str, Tensor], batch: Any) -> tuple[list[Tensor], list[Tensor]]:
        dense = run(model, state, batch)
        return dense, run(model, mask(state, plan), batch)

    return _compare(model, plan, example_input, runner, awake, reference, {})


def check_same(
    model: nn.Module,
    plan: PruningPlan,
    folds: dict[str, Tensor],
    example_input: Any,
    runner: Callable[..., list[Tensor]] = run,
    zeroed: Collection[str] = (),
) -> Proof:
    """Compares the model as it is with the sliced model: the proof that nothing was lost.

    Args:
        folds: {tensor name: what is added to it before slicing}.
        zeroed: names of scale factors whose removed entries count as zero in the reference.
    """

    def reference(state: dict[str, Tensor], batch: Any) -> tuple[list[Tensor], list[Tensor]]:
        dense = run(model, state, batch)
        for name in zeroed:
            gone = torch.ones(len(state[name]), dtype=torch.bool)
            gone[torch.tensor(plan.cuts[name].kept[0])] = False
            state[name][gone.to(state[name].device)] = 0
        return dense, run(model, state, batch) if zeroed else dense

    return _compare(model, plan, example_input, runner, as_is, reference, folds)


def as_is(model: nn.Module, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """A copy of the model's state."""
    return {
        name: t.detach().to(dtype or t.dtype, copy=True) if t.is_floating_point() else t
        for name, t in state_tensors(model).items()
    }


def _compare(
    model: nn.Module,
    plan: PruningPlan,
    example_input: Any,
    runner: Callable[..., list[Tensor]],
    make_state: Callable[[nn.Module, torch.dtype | None], dict[str, Tensor]],
    reference: Callable[[dict[str, Tensor], Any], tuple[list[Tensor], list[Tensor]]],
    folds: dict[str, Tensor],
) -> Proof:
    dtypes = exact_dtypes(model)
    with untouched(model):
        for dtype in dtypes:
            try:
                state = make_state(model, dtype)
                batch = random_like(example_input, dtype)
                dense, expected = reference(state, batch)
            except RuntimeError:  # a layer that insists on its own dtype
                if dtype is None:
                    raise
                continue
            if dtype is not None and not all(bool(t.isfinite().all()) for t in expected):
                continue
            for name, delta in folds.items():
                state[name] = state[name] + delta.to(state[name])
            small = slice_(state, plan)
            if runner is run:
                set_attributes(model, plan.attributes)
            try:
                result = runner(model, small, batch)
                break
            except RuntimeError:  # a rewritten graph may have the model's dtype written into it
                if dtype is None or runner is run:
                    raise
        used = expected[0].dtype
        difference, tolerance = distance(expected, result), TOLERANCE.get(used, 1e-3)
        if tolerance < difference < 1e-3:
            # A network may amplify rounding (sharp attention): see how far rounding alone carries.
            set_attributes(model, plan.attributes, back=True) if runner is run else None
            state = make_state(model, dtype)
            reference(state, batch)
            noise = distance(expected, run(model, rounded(state), batch))
            tolerance = max(tolerance, min(100 * noise, 1e-4))
    return Proof(difference, distance(dense, expected), used, tolerance)


def rounded(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state with every number moved by about one unit in the last place."""
    generator = torch.Generator().manual_seed(3)
    out = {}
    for name, tensor in state.items():
        out[name] = tensor
        if tensor.is_floating_point():
            sign = torch.randint(0, 2, tensor.shape, generator=generator).to(tensor) * 2 - 1
            out[name] = tensor * (1 + sign * torch.finfo(tensor.dtype).eps)
    return out
