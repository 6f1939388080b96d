"""Layers that have lost all their channels: stand-ins for what PyTorch cannot run without any.

A branch that is removed keeps its modules and its Parameter objects, of size zero, so names, optimizers, checkpoints
and the way back stay as for every other cut. A linear layer runs like that by itself. A convolution and a BatchNorm do
not: the class of the object is swapped, in copies and pickles too. Nothing is put on the object.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_prune.errors import PlanError
from lightning_prune.plan.cut import Cut
from lightning_prune.plan.plan import PruningPlan
from lightning_prune.support.swap.class_swap import is_swapped, original_class, recipe, restore, swap

_RECIPE = "empty"
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_PROBES = 9  # input sizes on which a convolution shows how it pads


@recipe(_RECIPE, copied=True)
def _stand_in(base: type[nn.Module], same: bool | None) -> dict[str, Any]:
    """same: whether a convolution pads to ceil(size / stride); None for a norm."""

    def convolution(self: Any, x: Tensor) -> Tensor:
        return _constant(self, x, bool(same))

    def norm(self: Any, x: Tensor) -> Tensor:
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)  # as the masked network's does; there is nothing to scale
        return x

    return {"forward": norm if same is None else convolution, "__doc__": f"{base.__name__} without channels."}


def may_be_empty(module: nn.Module) -> bool:
    """Whether a module of this kind can do without channels: by itself, or with a stand-in."""
    if isinstance(module, _CONVOLUTIONS):
        return _pads_alike(module) is not None
    return isinstance(module, (nn.Linear, _BatchNorm))


def empty_layers(model: nn.Module, paths: Collection[str]) -> None:
    """Puts stand-ins in place of the modules' own code, where they need one."""
    for path in paths:
        module = model.get_submodule(path)
        if is_empty_layer(module):
            continue
        if isinstance(module, _CONVOLUTIONS):
            swap(module, _RECIPE, bool(_pads_alike(module)))
        elif isinstance(module, _BatchNorm):
            swap(module, _RECIPE, None)


def fill(model: nn.Module, paths: Collection[str]) -> None:
    """Makes the modules run their own code again."""
    for path in paths:
        restore(model.get_submodule(path), _RECIPE)


@contextlib.contextmanager
def emptied(model: nn.Module, plan: PruningPlan) -> Iterator[None]:
    """Inside, the stand-ins that a plan needs run; after, the modules are what they were."""
    fresh = [path for path in plan.empty if not is_empty_layer(model.get_submodule(path))]
    try:
        empty_layers(model, fresh)
        yield
    finally:
        fill(model, fresh)


def is_empty_layer(module: nn.Module) -> bool:
    """Whether a stand-in runs in place of the module's own code."""
    return is_swapped(module, _RECIPE)


def empty_paths(cuts: Mapping[str, Cut]) -> tuple[str, ...]:
    """The modules that lose all channels of one of their tensors' dims."""
    emptied = (name for name, cut in cuts.items() if any(not kept for kept in cut.kept.values()))
    return tuple(sorted({name.rpartition(".")[0] for name in emptied}))


def branch_names(plan: PruningPlan) -> tuple[str, ...]:
    """For people: the innermost blocks that hold a branch with its end, a layer that nothing comes into any more."""
    weights = {path: plan.cuts.get(f"{path}.weight") for path in plan.empty}
    ends = [path for path, cut in weights.items() if cut is not None and cut.kept.get(0) != ()]
    found = set()
    for path in plan.empty:
        parent = block = path.rpartition(".")[0]
        while block and not any(end.startswith(f"{block}.") for end in ends):
            block = block.rpartition(".")[0]
        found.add(block or parent or path)
    return tuple(sorted(p for p in found if not any(p.startswith(f"{other}.") for other in found)))


def check_empty(plan: PruningPlan, model: nn.Module) -> None:
    """Raises PlanError unless exactly the modules that the plan names lose all channels, and can do without.

    Only the model's names and classes are looked at, whatever its shapes.
    """
    emptied, named = set(empty_paths(plan.cuts)), set(plan.empty)
    for name, cut in plan.cuts.items():
        dim = next((d for d, kept in cut.kept.items() if not kept), None)
        if dim is not None and name.rpartition(".")[0] not in named:
            raise PlanError(f"the plan would empty dim {dim} of {name:.200}; keep at least one channel")
    modules = dict(model.named_modules(remove_duplicate=False))
    for path in plan.empty:
        if path not in modules:
            raise PlanError(f"the plan leaves no channel in {path!r:.200}, which {type(model).__name__} does not have")
        if path not in emptied:
            raise PlanError(f"the plan names {path!r:.200} as a layer without channels, and leaves it some")
        module = modules[path]
        if not may_be_empty(module):
            raise PlanError(f"the plan would empty {path} ({type(module).__name__}), which needs at least one channel")
        _check_together(plan, path, module)


def _check_together(plan: PruningPlan, path: str, module: nn.Module) -> None:
    """All tensors of a module lose their channels together."""
    kept = {
        name: plan.cuts[f"{path}.{name}"].kept if f"{path}.{name}" in plan.cuts else {}
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        if tensor.ndim
    }
    rows = {name: dims.get(0) for name, dims in kept.items()}
    if len({dims == () for dims in rows.values()}) > 1:
        name = next(name for name, indices in rows.items() if indices != ())
        raise PlanError(f"the plan empties {path}, and leaves channels of {path}.{name}")
    for name, dims in kept.items():
        dim = next((d for d, left in dims.items() if not left and d > (name == "weight")), None)
        if dim is not None:
            raise PlanError(f"the plan would empty dim {dim} of {path}.{name}, which has no channels; keep one there")


def _constant(module: Any, x: Tensor, same: bool) -> Tensor:
    """What a convolution without inputs gives: its bias everywhere. Without outputs: nothing, in the right shape."""
    weight: Tensor = module.weight
    spatial = weight.ndim - 2
    sizes = out_sizes(module, tuple(x.shape[-spatial:]), same)
    lead, rows, dtype = tuple(x.shape[: -spatial - 1]), weight.shape[0], _out_dtype(x, weight)
    traced = torch.compiler.is_exporting() or isinstance(weight, FakeTensor)
    nothing: Tensor | None = None
    if x.requires_grad and torch.is_grad_enabled() and not traced:
        # What came before gets a gradient, of zeros: DDP waits for one. A view would not stand what works in place.
        none = torch.zeros(0, dtype=torch.int64, device=x.device)
        nothing = x.index_select(x.ndim - spatial - 1, none).reshape(*lead, 0, *sizes).to(dtype)
    if rows == 0 or (module.bias is None and nothing is None and not traced):
        return torch.zeros((*lead, rows, *sizes), dtype=dtype, device=x.device) if nothing is None else nothing
    # The sum over no inputs: zeros that a channel graph can follow back to the rows of the weight.
    value = weight.sum(tuple(range(1, weight.ndim))) if module.bias is None else module.bias
    value = value.to(dtype).view(rows, *[1] * spatial)
    if nothing is not None:
        return nothing.sum(-spatial - 1, keepdim=True) + value
    return value.expand(*lead, rows, *sizes).clone()  # activations may work in place


def out_sizes(module: Any, sizes: tuple[int, ...], same: bool) -> tuple[int, ...]:
    """The spatial sizes that come out of a convolution; same: whether it pads to ceil(size / stride), as TensorFlow."""
    if same:
        return tuple((n + s - 1) // s for n, s in zip(sizes, module.stride, strict=True))
    padding = module.padding
    if padding == "same":  # PyTorch's own: only with stride 1
        return sizes
    padding = (0,) * len(sizes) if padding == "valid" else padding
    return tuple(
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(sizes, padding, module.dilation, module.kernel_size, module.stride, strict=True)
    )


def _out_dtype(x: Tensor, weight: Tensor) -> torch.dtype:
    """The dtype that the convolution itself would give, under autocast too."""
    kind = x.device.type
    if kind != "meta" and weight.dtype != torch.float64 and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return weight.dtype


def _pads_alike(module: Any) -> bool | None:
    """How a convolution's own code pads: False as torch does, True to ceil(size / stride), None in no known way."""
    kind = original_class(module)
    if kind in _CONVOLUTIONS:
        return False
    twin = copy.copy(module)
    twin.__class__ = kind
    spatial = len(module.kernel_size)
    shapes = {n: p if p is None else (1, 1, *module.kernel_size) if n == "weight" else (1,) * max(p.ndim, 1)
              for n, p in module._parameters.items()}  # fmt: skip
    twin.__dict__["_parameters"] = {n: s if s is None else torch.ones(s, device="meta") for n, s in shapes.items()}
    twin.__dict__.update(groups=1, in_channels=1, out_channels=1)
    first = max(d * (k - 1) + 1 for d, k in zip(module.dilation, module.kernel_size, strict=True))
    found: dict[tuple[int, ...], tuple[int, ...]] = {}
    try:
        with torch.no_grad():
            for size in range(first, first + _PROBES):
                sizes = (size,) * spatial
                found[sizes] = tuple(twin.forward(torch.ones((1, 1, *sizes), device="meta")).shape[2:])
    except Exception:  # its code does something of its own
        return None
    known = (same for same in (False, True) if all(out_sizes(module, k, same) == v for k, v in found.items()))
    return next(known, None)
