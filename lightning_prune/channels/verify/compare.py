"""Proof on the spot: the sliced model computes what the masked model computes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lightning_prune.channels.surgery.cut import clear_caches, set_attributes
from lightning_prune.channels.surgery.denominators import standing_in
from lightning_prune.channels.surgery.retrace import at_least_two
from lightning_prune.channels.surgery.rewrite import GraphCode
from lightning_prune.channels.verify.tensors import (
    Later,
    LazyRun,
    Reader,
    cast,
    folded,
    fresh,
    masked,
    reader,
    reading,
    rounded,
    sliced,
    without_zeros,
)
from lightning_prune.plan.plan import PruningPlan
from lightning_prune.support.modes import attributes_kept, mode, split_input, without_hooks

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 1e-1}
"""Largest allowed difference, relative to the largest output, by the dtype that the check ran in."""

SMALL = 1 << 25
"""Bytes (32 MiB) that a tensor may take in float64 whatever the size of the model."""


@dataclass(frozen=True)
class Proof:
    """What the check on a random batch found.

    Attributes:
        difference: largest |masked - sliced| relative to the largest |masked|.
        effect: largest |masked - dense| relative to the largest |dense|: how much the masking itself changes.
        dtype: what the check was computed in.
        tolerance: the largest allowed difference.
        training: whether all this was looked at in train mode too, where the model does something else there.
    """

    difference: float
    effect: float
    dtype: torch.dtype
    tolerance: float
    training: bool = False

    @property
    def equal(self) -> bool:
        """Whether sliced == masked within the tolerance."""
        return self.difference <= self.tolerance

    @property
    def vacuous(self) -> bool:
        """Whether masking changes hardly anything, so that equal outputs say nothing."""
        return self.effect <= 10 * self.tolerance and not self.effect > 10 * self.difference

    def and_training(self, other: Proof) -> Proof:
        """With what the check in train mode found: the worst of both."""
        difference, tolerance = max(self.difference, other.difference), max(self.tolerance, other.tolerance)
        return Proof(difference, max(self.effect, other.effect), other.dtype, tolerance, True)

    def __str__(self) -> str:
        modes = " in eval and in train mode" if self.training else ""
        return (
            f"masked == sliced{modes} within {self.difference:.1e} ({self.dtype}, tolerance {self.tolerance:.0e}); "
            f"the masking changes the output by {self.effect:.1e}"
        )


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Eval mode inside, without hooks and gradients; the model's attributes are as they were after."""
    with attributes_kept(model), without_hooks(model), mode(model, False), torch.no_grad():
        yield


def random_like(example_input: Any, dtype: torch.dtype | None) -> Any:
    """A random batch in the shapes of the example; integer inputs are taken as they are."""
    generator = torch.Generator().manual_seed(0)

    def draw(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        return noise.to(device=value.device, dtype=dtype or value.dtype)

    return pytree.tree_map(draw, example_input)


def run(model: nn.Module, read: Reader, example: Any, seed: int = 0) -> list[Tensor]:
    """Runs a model with the tensors that a reader makes; returns the floating-point outputs."""
    args, kwargs = split_input(example)
    clear_caches(model)  # of the run before, with other tensors
    with _random_state(model, seed), reading(model, read):
        out = model(*args, **kwargs)
    return [t for t in pytree.tree_leaves(out) if isinstance(t, Tensor) and t.is_floating_point()]


def graph_runner(code: GraphCode) -> Callable[..., list[Tensor]]:
    """Runs a graph with tensors from outside, as `run` runs a module."""

    def runner(model: nn.Module, read: Reader, batch: Any) -> list[Tensor]:
        feed = code.feed(split_input(batch), lambda name: Later(read, name))
        with _random_state(model, 0):
            out = LazyRun(code.module.graph).run(*feed)
        return [t for t in out if isinstance(t, Tensor) and t.is_floating_point()]

    return runner


def amplifies_rounding(model: nn.Module, plan: PruningPlan, example_input: Any) -> bool:
    """Whether the last digit of its weights decides what the masked model gives (where it sorts or picks)."""
    dtype = exact_dtypes(model)[0]
    reference = reader(model, without_zeros(model, plan), masked(plan, dtype))
    batch = random_like(example_input, dtype)
    with untouched(model):
        first = run(model, reference, batch)
        second = run(model, lambda name: rounded(name, reference(name)), batch)
    return distance(first, second) > TOLERANCE[torch.float32]


@contextlib.contextmanager
def _random_state(model: nn.Module, seed: int) -> Iterator[None]:
    """The same random numbers in every run; the global states are as they were after."""
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices):
        torch.default_generator.manual_seed(seed)
        for device in devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def is_random(model: nn.Module, example_input: Any) -> bool:
    """Whether a model gives something else in eval mode with other random numbers."""
    batch = random_like(example_input, None)
    with untouched(model):
        first, second = (run(model, reader(model), batch, seed) for seed in (0, 1))
    return distance(first, second) > TOLERANCE[torch.float32]


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
    """float64 first, unless one tensor in it would take most of the model's memory; then the model's own dtype."""
    tensors = list(model.parameters())
    size = sum(p.numel() * p.element_size() for p in tensors)
    largest = max((8 * p.numel() for p in tensors), default=0)
    return (torch.float64, None) if largest <= max(SMALL, size // 2) else (None,)


def check_trains(model: nn.Module, plan: PruningPlan, example_input: Any) -> None:
    """Runs the sliced model in train mode, unchanged after; raises what it raises, unless the dense one raises too."""
    batch = random_like(example_input, None)
    with untouched(model), mode(model, True):
        try:
            set_attributes(model, plan.attributes)
            with standing_in(model, plan):
                run(model, reader(model, sliced(plan, None), fresh), batch)
        except Exception:
            set_attributes(model, plan.attributes, back=True)
            if runs_in_training(model, example_input):
                raise


def runs_in_training(model: nn.Module, example_input: Any) -> bool:
    """Whether the model as it is runs in train mode on an example, of two samples at least."""
    with untouched(model), mode(model, True, noise=False):
        try:
            run(model, reader(model, fresh), random_like(at_least_two(example_input), None))
        except Exception:
            return False
    return True


def check_plan(
    model: nn.Module, plan: PruningPlan, example_input: Any, runner: Callable[..., list[Tensor]] = run,
    folds: Mapping[str, Tensor] | None = None, zeroed: Collection[str] = (), training: bool = False,
) -> Proof:  # fmt: skip
    """Compares what a plan leaves with the masked model, in which nothing else is zero, or with the model as it is.

    The model does not change: its tensors are made from outside. Raises whatever the sliced model raises.

    Args:
        runner: how to run the sliced tensors; by default the model itself with the plan's attributes set.
        folds: {tensor name: what is added to it before slicing}; if given, the model as it is is the reference,
        zeroed: in which the removed entries of these scale factors count as zero.
        training: in train mode, without dropout, and with BatchNorm on the batch's statistics.
    """
    first = (without_zeros(model, plan),) if folds is None else ()
    if training:
        first, example_input = (*first, fresh), at_least_two(example_input)
    as_it_is = folds is not None and not zeroed
    with untouched(model), mode(model, training, noise=False):
        for dtype in exact_dtypes(model):
            reference = reader(model, *first, masked(plan, dtype, None if folds is None else zeroed))
            batch = random_like(example_input, dtype)
            try:
                dense = run(model, reader(model, *first, cast(dtype)), batch)
                expected = dense if as_it_is else run(model, reference, batch)
            except RuntimeError:  # a layer that insists on its own dtype
                if dtype is None:
                    raise
                continue
            if dtype is not None and not all(bool(t.isfinite().all()) for t in expected):
                continue
            small = reader(model, *first, folded(folds or {}, dtype), sliced(plan, dtype))
            if runner is run:
                set_attributes(model, plan.attributes)
            try:
                with standing_in(model, plan):
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
            noise = distance(expected, run(model, lambda name: rounded(name, reference(name)), batch))
            tolerance = max(tolerance, min(100 * noise, 1e-4))
    return Proof(difference, distance(dense, expected), used, tolerance)


def lost_gradients(
    model: nn.Module, plan: PruningPlan, example_input: Any, runner: Callable[..., list[Tensor]] = run
) -> list[str]:
    """The parameters that get a gradient in a training step of the masked model, and not in one of the sliced one."""
    first, batch = (without_zeros(model, plan), fresh), random_like(at_least_two(example_input), None)
    with untouched(model), mode(model, True, noise=False), torch.enable_grad():
        expected = _with_gradient(model, reader(model, *first, masked(plan, None)), batch, run)
        if runner is run:
            set_attributes(model, plan.attributes)
        with standing_in(model, plan):
            found = _with_gradient(model, reader(model, *first, sliced(plan, None)), batch, runner)
    return sorted(n for n in expected - found if n not in plan.cuts or 0 not in plan.cuts[n].new_shape)


def _with_gradient(model: nn.Module, read: Reader, batch: Any, runner: Callable[..., list[Tensor]]) -> set[str]:
    """The parameters that a training step gives a gradient."""
    trained = {name for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    made: dict[str, Tensor] = {}

    def leaf(name: str) -> Tensor:
        if name in trained and name not in made:
            made[name] = read(name).clone().requires_grad_()
        return made[name] if name in trained else read(name)

    outputs = [t for t in runner(model, leaf, batch) if t.requires_grad]
    if outputs:
        torch.stack([t.double().square().sum() for t in outputs]).sum().backward()  # type: ignore[no-untyped-call]
    return {name for name, tensor in made.items() if tensor.grad is not None}
