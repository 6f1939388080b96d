"""Proof on the spot: the sliced model computes what the masked model computes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_prune.channels.surgery.cut import set_attributes
from lightning_prune.channels.surgery.denominators import standing_in
from lightning_prune.channels.surgery.retrace import at_least_two
from lightning_prune.channels.trace.program import Program
from lightning_prune.channels.verify.layers import first_apart, watched
from lightning_prune.channels.verify.noise import rounded, shaken, without_zeros
from lightning_prune.channels.verify.runs import distance, exact_dtypes, random_like, run, runs_in_training, untouched
from lightning_prune.channels.verify.small import Calls, smaller
from lightning_prune.channels.verify.tensors import (
    Reader,
    Step,
    cast,
    folded,
    fresh,
    masked,
    reader,
    remembered,
    sliced,
    through,
)
from lightning_prune.plan.plan import PruningPlan
from lightning_prune.support.modes import mode

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 1e-1}
"""Largest allowed difference, relative to the largest output, by the dtype that the check ran in."""

ROUNDING = 1e-4
"""Largest difference that passes as rounding of float32, of the output and of each layer, relative to its largest
channel. Right plans differ by about 1e-6, a wrong channel by some tenths: `tests/benchmarks/wrong_cuts.md`."""

EFFECT = 1e-2
"""Smallest effect of the masking beside which such a difference is small."""


@dataclass(frozen=True)
class Proof:
    """What the check on a random batch found.

    In float32 every layer was compared too, in the channels that stay, and what is told is of the model with small
    random numbers added to its vectors; of images on one sample of at most 64 x 64 pixels, where the model makes the
    same calls on it. Where that does not settle it, the outputs were compared in float64.

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
        coarse = max(self, other, key=lambda proof: proof.tolerance)
        difference, effect = max(self.difference, other.difference), max(self.effect, other.effect)
        return Proof(difference, effect, coarse.dtype, coarse.tolerance, True)

    def __str__(self) -> str:
        modes = " in eval and in train mode" if self.training else ""
        return (
            f"masked == sliced{modes} within {self.difference:.1e} ({self.dtype}, tolerance {self.tolerance:.0e}); "
            f"the masking changes the output by {self.effect:.1e}"
        )


def amplifies_rounding(model: nn.Module, plan: PruningPlan, example_input: Any) -> bool:
    """Whether the last digit of its weights decides what the masked model gives (where it sorts or picks)."""
    dtype = exact_dtypes(model)[0]
    reference = reader(model, without_zeros(model, plan), masked(plan, dtype))
    batch = random_like(example_input, dtype)
    with untouched(model):
        first = run(model, reference, batch)
        second = run(model, lambda name: rounded(name, reference(name)), batch)
    return distance(first, second) > TOLERANCE[torch.float32]


def is_random(model: nn.Module, example_input: Any) -> bool:
    """Whether a model gives something else in eval mode with other random numbers."""
    batch = random_like(example_input, None)
    with untouched(model):
        first, second = (run(model, reader(model), batch, seed) for seed in (0, 1))
    return distance(first, second) > TOLERANCE[torch.float32]


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


def check_plan(
    model: nn.Module, plan: PruningPlan, example_input: Any, runner: Callable[..., list[Tensor]] = run,
    folds: Mapping[str, Tensor] | None = None, zeroed: Collection[str] = (), training: bool = False,
    program: Program | None = None,
) -> Proof:  # fmt: skip
    """Compares what a plan leaves with the masked model, in which nothing else is zero, or with the model as it is.

    The model does not change: its tensors are made from outside. Raises whatever the sliced model raises.

    Args:
        runner: how to run the sliced tensors; by default the model itself with the plan's attributes set.
        folds: {tensor name: what is added to it before slicing}; if given, the model as it is is the reference,
        zeroed: in which the removed entries of these scale factors count as zero.
        training: in train mode, without dropout, and with BatchNorm on the batch's statistics.
        program: the model's graph in eval mode; with it, a smaller example is tried first.
    """
    first = (without_zeros(model, plan),) if folds is None else ()
    if training:
        first, example_input = (*first, fresh), at_least_two(example_input)
    as_it_is = folds is not None and not zeroed
    layers = folds is None and runner is run
    if layers and not training and program is not None:
        with untouched(model):
            clear = _by_few_pixels(model, plan, example_input, first, program)
        if clear is not None:
            return clear
    with untouched(model), mode(model, training, noise=False):
        if layers and (clear := _by_layers(model, plan, example_input, first)) is not None:
            return clear
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


def _by_few_pixels(
    model: nn.Module, plan: PruningPlan, example_input: Any, first: tuple[Step, ...], program: Program
) -> Proof | None:
    """The check on a smaller example, where that says as much; None where the given one has to tell."""
    small = smaller(example_input)
    if small is None:
        return None
    try:
        with torch.inference_mode():
            return _by_layers(model, plan, small, first, program)
    except Exception:  # the network wants its size
        return None


def _by_layers(
    model: nn.Module, plan: PruningPlan, example_input: Any, first: tuple[Step, ...], program: Program | None = None
) -> Proof | None:
    """The check in float32, where that proves as much; None where float64 has to tell.

    The output alone would hide a mistake that fades on the way to it, so every layer is compared in the channels that
    stay: what one wrong channel does to the layer itself is orders of magnitude above rounding.
    """
    if any(p.dtype in (torch.float64, torch.complex64, torch.complex128) for p in model.parameters()):
        return None
    dtype = torch.float32
    batch, read = random_like(example_input, dtype), reader(model, *first, shaken(model), cast(dtype))
    read = read if model.training else remembered(read)  # a train-mode run writes statistics in place
    try:
        if program is None:
            dense = run(model, read, batch)
        else:
            with Calls() as calls:
                dense = run(model, calls.aside(read), batch)
            if not calls.as_in(program):
                return None
        with watched(model) as wanted:
            expected = run(model, through(read, masked(plan, None)), batch)
    except RuntimeError:  # a layer that insists on its own dtype
        return None
    set_attributes(model, plan.attributes)
    try:
        with standing_in(model, plan), watched(model) as found:
            result = run(model, through(read, sliced(plan, None)), batch)
    finally:
        set_attributes(model, plan.attributes, back=True)
    difference, effect = distance(expected, result), distance(dense, expected)
    if not (difference <= min(ROUNDING, ROUNDING * effect) and effect >= EFFECT):
        return None
    return Proof(difference, effect, dtype, ROUNDING) if first_apart(wanted, found, plan, ROUNDING) is None else None


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
