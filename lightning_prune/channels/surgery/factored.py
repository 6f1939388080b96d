"""Factorised layers: one linear layer or convolution that becomes two, in place, and one again.

The layer's object stays, with its hooks and whatever holds it; its class and its children change. Both parts are plain
layers of PyTorch, so channel graphs, exporters, compilers, reports and further pruning see nothing new.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.optim import Optimizer

from lightning_prune.errors import PlanError
from lightning_prune.functional import low_rank
from lightning_prune.plan.factor import Factor
from lightning_prune.support.swap.class_swap import PREFIX, original_class

_FORWARDS = (nn.Linear.forward, nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward)
_SIZES = (("in_features", "out_features"), ("in_channels", "out_channels"))


class FactoredLayer(nn.Sequential):
    """A layer of low rank: child ``0`` takes the inputs to ``rank`` channels, child ``1`` those to the outputs.

    Its names in a state dict are ``0.weight``, ``1.weight`` and ``1.bias``. What code reads off the layer that it was
    (weight, bias, widths) is there to be read; the weight is the product of the two, computed at each call.
    """

    @property
    def parts(self) -> tuple[Any, Any]:
        """Both layers."""
        return self[0], self[1]

    @property
    def rank(self) -> int:
        """Channels between the two."""
        return len(self.parts[0].weight)

    @property
    def weight(self) -> Tensor:
        """The weight of the one layer that computes the same, [out, in, *kernel]."""
        first, second = (part.weight for part in self.parts)
        product: Tensor = second.flatten(1) @ first.flatten(1)
        return product.view(-1, *first.shape[1:])

    @property
    def bias(self) -> nn.Parameter | None:
        """The second part's."""
        return cast("nn.Parameter | None", self.parts[1].bias)

    @property
    def in_features(self) -> int:
        return int(self.parts[0].in_features)

    @property
    def out_features(self) -> int:
        return int(self.parts[1].out_features)

    @property
    def in_channels(self) -> int:
        return int(self.parts[0].in_channels)

    @property
    def out_channels(self) -> int:
        return int(self.parts[1].out_channels)


def why_not(module: nn.Module) -> str | None:
    """Why a layer cannot become two; None if it can."""
    weight = module._parameters.get("weight")
    kind = original_class(module)
    special = isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)  # attention reads its weight
    if not isinstance(module, (nn.Linear, _ConvNd)) or weight is None:
        return "no linear layer or convolution with a weight of its own"
    if kind.forward not in _FORWARDS or "forward" in vars(module) or special:
        return f"{kind.__name__} has a forward of its own, or none"
    if getattr(module, "groups", 1) != 1:
        return "a grouped convolution"
    if low_rank.most_rank(weight.shape[0], weight[0].numel()) < 1:
        return "two layers of rank 1 are no smaller"
    return None


def check_factors_fit(factors: Mapping[str, Factor], shapes: Mapping[str, tuple[int, ...]], model: nn.Module) -> None:
    """Raises PlanError naming the first layer that cannot become two, or whose weight has another shape.

    shapes: of the model's tensors after the plan's cuts, by name.
    """
    modules = dict(model.named_modules())
    parts = {id(part) for layer in modules.values() if isinstance(layer, FactoredLayer) for part in layer}
    holders: dict[int, set[int]] = {}
    for module in modules.values():
        for p in module._parameters.values():
            holders.setdefault(id(p), set()).add(id(module))
    for path, factor in factors.items():
        if path not in modules:
            raise PlanError(f"the plan factorises {path[:200]!r}, which {type(model).__name__} does not have")
        module = modules[path]
        if isinstance(module, FactoredLayer) or id(module) in parts:
            raise PlanError(f"the plan factorises {path:.200}, which is factorised already")
        reason = why_not(module)
        if reason is None and len(holders[id(module._parameters["weight"])]) > 1:
            reason = "its weight is shared with another layer"
        if reason is not None:
            raise PlanError(f"the plan factorises {path:.200} ({type(module).__name__}): {reason}")
        if shapes[f"{path}.weight"] != factor.shape:
            found = shapes[f"{path}.weight"]
            raise PlanError(f"the plan factorises {path:.200} of shape {factor.shape}, its weight has {found}")


def dense_shapes(factors: Mapping[str, Factor], model: nn.Module) -> dict[str, tuple[int, ...]]:
    """{name: shape} of the weights and biases that undoing factors will leave.

    Raises:
        PlanError: a layer is not factorised as the plan says.
    """
    modules, shapes = dict(model.named_modules()), dict[str, tuple[int, ...]]()
    for path, factor in factors.items():
        layer = modules.get(path)
        if not isinstance(layer, FactoredLayer) or layer.rank != factor.rank or layer.weight.shape != factor.shape:
            found = f"rank {layer.rank}" if isinstance(layer, FactoredLayer) else type(layer).__name__
            raise PlanError(
                f"the plan leaves {path:.200} factorised at rank {factor.rank}, found {found}; undo the very plan that "
                "was applied to this model"
            )
        shapes[f"{path}.weight"] = factor.shape
        if layer.bias is not None:
            shapes[f"{path}.bias"] = tuple(layer.bias.shape)
    return shapes


@torch.no_grad()
def factorize_layers(
    factors: Mapping[str, Factor], model: nn.Module, optimizers: Iterable[Optimizer] = (),
    like: nn.Module | None = None, values: bool = True,
) -> None:  # fmt: skip
    """Makes two layers of each, in place. Everything was checked before.

    Args:
        factors: by the paths of the layers.
        model: holds them.
        optimizers: those over the model's parameters.
        like: the factorised model of which this is an averaged copy; it gets the same directions.
        values: whether the parts get the weight's factors; else zeros, for whoever loads others.
    """
    optimizers = list(optimizers)
    for path, factor in factors.items():
        layer = model.get_submodule(path)
        weight = layer._parameters["weight"]
        assert weight is not None
        matrix = weight.detach().flatten(1)
        if not values or weight.is_meta:
            rows, columns = factor.matrix
            first, second = matrix.new_zeros(factor.rank, columns), matrix.new_zeros(rows, factor.rank)
        elif like is None:
            first, second = low_rank.factors(matrix, factor.rank)
        else:
            parts = like.get_submodule(path)
            assert isinstance(parts, FactoredLayer)
            pair = [part.weight.detach().flatten(1) for part in parts.parts]
            first, second = low_rank.factors_like(matrix, *pair)
        _split(layer, weight, first, second, optimizers)


def _split(
    layer: nn.Module, weight: nn.Parameter, first: Tensor, second: Tensor, optimizers: Iterable[Optimizer]
) -> None:
    """The Parameter of the weight becomes the first part's, the second's joins the optimizers right behind it."""
    grad, weight.grad = weight.grad, None
    rank, bias = first.shape[0], layer._parameters["bias"]
    lower, upper = _parts(layer, rank)
    ones = (1,) * (weight.ndim - 2)
    weight.data = first.view(rank, *weight.shape[1:]).contiguous()
    new = nn.Parameter(second.view(*second.shape, *ones).contiguous(), requires_grad=weight.requires_grad)
    if grad is not None:  # by the chain rule, from dL/dW
        weight.grad = (second.T @ grad.flatten(1)).view_as(weight)
        new.grad = (grad.flatten(1) @ first.T).view_as(new)
    lower._parameters.update(weight=weight, bias=None)
    upper._parameters.update(weight=new, bias=bias)
    layer.__class__ = FactoredLayer
    layer._parameters.clear()
    layer._modules.update({"0": lower, "1": upper})
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            at = next((i for i, p in enumerate(group["params"]) if p is weight), None)
            if at is not None:
                group["params"].insert(at + 1, new)
                optimizer.state.pop(weight, None)


def _parts(layer: nn.Module, rank: int) -> tuple[Any, Any]:
    """Two layers without tensors: one as the layer itself up to its outputs, and one that only mixes channels."""
    lower: Any = nn.Module()
    lower.training = layer.training
    lower.__dict__.update({k: v for k, v in vars(layer).items() if k not in vars(lower) and not k.startswith(PREFIX)})
    lower.__class__ = original_class(layer)
    lower._parameters.update(weight=None, bias=None)
    if isinstance(layer, nn.Linear):
        lower.out_features = rank
        upper: nn.Module = nn.Linear(rank, layer.out_features, bias=False, device="meta")
    else:
        assert isinstance(layer, _ConvNd)
        plain = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[len(layer.kernel_size)]
        lower.out_channels = rank
        upper = plain(rank, layer.out_channels, 1, bias=False, device="meta")
    upper.training = layer.training
    return lower, upper


@torch.no_grad()
def merge_layers(paths: Iterable[str], model: nn.Module) -> None:
    """Makes one layer again of each of two: their product, in the Parameter that was the layer's and is the first's."""
    for path in paths:
        layer: Any = model.get_submodule(path)
        lower, upper = layer.parts
        product, weight, bias = layer.weight, lower.weight, upper.bias
        weight.grad, weight.data = None, product.detach()
        layer.__class__ = type(lower)
        layer._modules.clear()
        layer._parameters.update(weight=weight, bias=bias)
        for taken, given in _SIZES:
            if hasattr(lower, taken):
                setattr(layer, taken, getattr(lower, taken))
                setattr(layer, given, getattr(upper, given))
