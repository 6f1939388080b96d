"""The network that is shipped or measured: taken out of what was given, on the CPU, with its dense form beside it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

from lightning_prune.errors import ChannelError, ExportError
from lightning_prune.io import load_pruned
from lightning_prune.io.compact import plans_below
from lightning_prune.io.recipe import network_of
from lightning_prune.masks import is_attached
from lightning_prune.plan.plan import PruningPlan
from lightning_prune.support.modes import Arguments, split_input, without_hooks
from lightning_prune.support.tensors import state_tensors

Run = Callable[[Any], Any]


def take_network(model: nn.Module | str | Path) -> tuple[nn.Module, dict[str, PruningPlan]]:
    """A copy of the network in float32 on the CPU in eval mode, and its pruning plans by the path of what they cut.

    Raises:
        ExportError: the weights are still being pruned.
    """
    given = model if isinstance(model, nn.Module) else load_pruned(model)
    network = network_of(given)
    if is_attached(network):
        raise ExportError(f"{type(network).__name__} is being sparsified: its zeros are in the weights after fit")
    return copy.deepcopy(network).cpu().float().eval(), plans_below(given, network)


def dense_form(network: nn.Module, plans: Mapping[str, PruningPlan]) -> nn.Module | None:
    """A network of the shapes that a compact one had when it was dense, to be timed and counted; None if it is dense.

    Zeros in the weights that were cut are filled with random numbers of the spread of the others. What they give
    rise to ends at norms with a scale of zero, where there are norms.
    """
    if not plans:
        return None
    dense = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(0)
    try:
        for path, plan in plans.items():
            part = plan.undo(dense.get_submodule(path))
            for name, tensor in state_tensors(part).items():
                if name in plan.cuts and tensor.ndim > 1:
                    _fill_zeros(tensor.data, generator)
    except ChannelError:
        return None
    return dense.eval()


def _fill_zeros(weight: Tensor, generator: torch.Generator) -> None:
    zero = weight == 0
    spread = float(weight[~zero].square().mean().sqrt()) if not bool(zero.all()) else 0.0
    weight[zero] = spread * torch.randn(int(zero.sum()), generator=generator)


def inputs_of(batch: Any) -> Arguments:
    """The arguments in a batch as a loader gives it: of (input, labels) the input, which may be a tuple or a dict.

    On the CPU, floats in float32.
    """
    given = split_input(batch[0] if isinstance(batch, (tuple, list)) else batch)
    return Arguments(*pytree.tree_map(_plain, tuple(given)))


def _plain(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    value = value.detach().cpu()
    return value.float() if value.is_floating_point() else value


def tensors_of(arguments: Arguments) -> list[Tensor]:
    """The tensors among arguments, in the order in which an exported network takes them."""
    return [v for v in pytree.tree_leaves((arguments.args, arguments.kwargs)) if isinstance(v, Tensor)]


def resized(example_input: Any, batch: int) -> Arguments:
    """The example with another batch size: samples repeated, each a little weaker, so that no two are the same."""

    def resize(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.ndim:
            return value
        out: Tensor = _plain(value)[torch.arange(batch) % len(value)]
        weaker = torch.linspace(1, 0.5, batch).reshape(-1, *[1] * (out.ndim - 1))
        return out * weaker if out.is_floating_point() else out

    return Arguments(*pytree.tree_map(resize, tuple(split_input(example_input))))


def runner(network: nn.Module) -> Run:
    """Calls a network on `Arguments`, without gradients and without the hooks that are not its own."""

    def run(arguments: Arguments) -> Any:
        with torch.inference_mode(), without_hooks(network):
            return network(*arguments.args, **arguments.kwargs)

    return run


@contextmanager
def clocked(threads: int) -> Iterator[None]:
    """So many threads of PyTorch, and denormals flushed to zero; both as before after, whatever sessions did to them.

    Sessions that flush set a flag of the processor, which outlives them in the thread that made them.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with denormals(flushed=True):
            yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def denormals(*, flushed: bool) -> Iterator[None]:
    """Whether this thread takes denormal numbers for zero inside; as before after."""
    before = float(torch.full((1,), 1e-39) * 1.0) == 0
    torch.set_flush_denormal(flushed)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def strange_values(network: nn.Module, arguments: Arguments) -> list[str]:
    """What makes timings of a network untrustworthy: statistics that saw no data, activations that are denormal.

    A denormal takes a CPU a hundred times longer than another number; they come where BatchNorm's statistics do not
    fit what passes through, as in a fresh network.
    """
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.num_batches_tracked is not None]
    fresh = sum(int(m.num_batches_tracked or 0) == 0 for m in norms)
    found = []
    if fresh and all(bool((m.running_mean == 0).all()) for m in norms if m.running_mean is not None):
        found.append(f"{fresh} of {len(norms)} BatchNorm layers have seen no data: train or recalibrate them first.")
    worst = max(_denormal_shares(network, arguments), default=0.0)
    if worst > 0:
        found.append(
            f"Up to {worst:.1%} of a layer's activations are denormal, which is slow unless a session flushes them, as "
            "the timed ones do: BatchNorm statistics do not fit the data."
        )
    return found


def _denormal_shares(network: nn.Module, arguments: Arguments) -> Iterable[float]:
    shares: list[float] = []

    def look(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.is_floating_point() and output.numel():
            small = output.abs() < torch.finfo(output.dtype).tiny
            shares.append(float((small & (output != 0)).double().mean()))

    with without_hooks(network), torch.inference_mode(), denormals(flushed=False):
        hooks = [m.register_forward_hook(look) for m in network.modules() if not any(True for _ in m.children())]
        try:
            network(*arguments.args, **arguments.kwargs)
        finally:
            for hook in hooks:
                hook.remove()
    return shares
