"""How a model runs for a check: on random inputs, with tensors from outside, and as it was before after."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lightning_prune.channels.surgery.cut import clear_caches
from lightning_prune.channels.surgery.retrace import at_least_two
from lightning_prune.channels.surgery.rewrite import GraphCode
from lightning_prune.channels.verify.tensors import SMALL, Later, LazyRun, Reader, fresh, reader, reading
from lightning_prune.support.modes import attributes_kept, mode, split_input, without_hooks


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


@contextlib.contextmanager
def _random_state(model: nn.Module, seed: int) -> Iterator[None]:
    """The same random numbers in every run; the global states are as they were after."""
    on_gpus = model.parameters() if torch.cuda.is_initialized() else ()
    devices = sorted({p.device.index for p in on_gpus if p.device.type == "cuda"})
    with torch.random.fork_rng(devices):
        torch.default_generator.manual_seed(seed)
        for device in devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def runs_in_training(model: nn.Module, example_input: Any) -> bool:
    """Whether the model as it is runs in train mode on an example, of two samples at least."""
    with untouched(model), mode(model, True, noise=False):
        try:
            run(model, reader(model, fresh), random_like(at_least_two(example_input), None))
        except Exception:
            return False
    return True


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
