"""Which weights are pruned: every conv and linear weight of a module, narrowed by name patterns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy
from torchmetrics import Metric

from lightning_prune.support.patterns import check_patterns, matches

_ATTENTION_WEIGHTS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


@dataclass(frozen=True, eq=False)
class Target:
    """One prunable weight: its name, the parameter, and a module that holds it (a tied one is held by several)."""

    name: str
    param: nn.Parameter
    module: nn.Module

    @property
    def numel(self) -> int:
        return self.param.numel()

    @property
    def fans(self) -> tuple[int, int]:
        """Inputs of one output, outputs of one input."""
        groups = getattr(self.module, "groups", 1)
        return self.numel // len(self.param), max(1, self.numel // self.param.shape[1] // groups)


class Skipped(NamedTuple):
    """A weight that was left out, and why."""

    name: str
    reason: str


def _weights(
    root: nn.Module, include: Sequence[str] | None, exclude: Sequence[str] | None
) -> list[tuple[str, nn.Module, str]]:
    """(full name, module, attribute) of each conv and linear weight below ``root``, metrics left out.

    Raises if there is none, or if a pattern matches none.
    """
    metrics = tuple(f"{n}." for n, m in root.named_modules() if isinstance(m, Metric))
    found = []
    for prefix, module in root.named_modules():
        attributes: tuple[str, ...] = ("weight",) if isinstance(module, (_ConvNd, nn.Linear)) else ()
        if isinstance(module, nn.MultiheadAttention):
            attributes = tuple(a for a in _ATTENTION_WEIGHTS if getattr(module, a) is not None)
        found += [(f"{prefix}.{a}" if prefix else a, module, a) for a in attributes]
    found = [entry for entry in found if not entry[0].startswith(metrics)]
    if not found:
        raise ValueError(f"{type(root).__name__} has no conv or linear weight: there is nothing to prune.")
    for argument, patterns in (("include", include), ("exclude", exclude)):
        check_patterns(patterns or (), [name for name, _, _ in found], argument, "prunable weight")
    return found


def prunable_weights(
    root: nn.Module, include: Sequence[str] | None = None, exclude: Sequence[str] | None = None
) -> list[tuple[str, Tensor]]:
    """(name, weight as the forward reads it) of each conv and linear weight below ``root``, a tied weight once.

    Raises:
        ValueError: there is none, or a pattern matches none.
    """
    weights: dict[int, tuple[str, Tensor]] = {}
    for name, module, attribute in _weights(root, include, exclude):
        if (not include or matches(name, include)) and not matches(name, exclude or ()):
            # A tie is the same Parameter; where the weight is computed from others, each module has its own.
            identity = id(module._parameters.get(attribute, module))
            weights.setdefault(identity, (name, getattr(module, attribute)))
    return list(weights.values())


def needs_grad(param: Tensor) -> bool:
    """Whether a parameter trains, as far as itself can tell."""
    return param.requires_grad


def _reason_to_skip(module: nn.Module, attribute: str, trains: Callable[[Tensor], bool]) -> str | None:
    if isinstance(module, torch.jit.ScriptModule):
        return "a TorchScript module: its forward cannot be masked; use the eager module"
    param = module._parameters.get(attribute)
    if param is None:
        return (
            "computed from other parameters (parametrization, weight_norm or torch.nn.utils.prune): remove that first"
        )
    if is_lazy(param):
        return "not initialised yet: run one forward before fit"
    if not param.numel():
        return "nothing is left of it: its branch was removed"
    if "StdConv" in type(module).__name__:
        return "standardised in forward: its zeros would not stay zero"
    if not trains(param):
        return "held by no optimizer: nothing trains it" if param.requires_grad else "frozen (requires_grad=False)"
    return None


def _first_and_last(root: nn.Module, names: Sequence[str]) -> tuple[set[str], set[str]]:
    """Names of the stem's and the classifier's weights: as a timm model states them, else first and last by order."""
    for prefix, module in root.named_modules():
        config: Any = getattr(module, "pretrained_cfg", None)
        if isinstance(config, dict) and config.get("classifier"):
            first, last = (config.get(key) or () for key in ("first_conv", "classifier"))
            found = []
            for value in (first, last):
                parts = (value,) if isinstance(value, str) else value
                starts = tuple(f"{prefix}.{p}." if prefix else f"{p}." for p in parts)
                found.append({n for n in names if n.startswith(starts)})
            return found[0] or {names[0]}, found[1] or {names[-1]}
    return {names[0]}, {names[-1]}


def find_targets(
    root: nn.Module,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    skip_first: bool = False,
    skip_last: bool = False,
    trains: Callable[[Tensor], bool] = needs_grad,
) -> tuple[list[Target], list[Skipped]]:
    """Find the weights to prune below ``root``: all conv and linear weights, never BatchNorm, biases or embeddings.

    Args:
        root: module to search; torchmetrics inside it are left out.
        include: fnmatch patterns on parameter or module names, whole or from any dot on; None takes all.
        exclude: patterns of weights to leave dense.
        skip_first: leave the stem dense (timm's ``first_conv``, else the first weight).
        skip_last: leave the classifier dense (timm's ``classifier``, else the last weight).
        trains: whether a parameter does; others are left out.

    Returns:
        The targets in the module's order, a tied or shared parameter once, and what was skipped with the reason.

    Raises:
        ValueError: a pattern matches nothing, or nothing is left to prune.
    """
    found = _weights(root, include, exclude)
    names = [name for name, _, _ in found]
    first, last = _first_and_last(root, names)
    targets: dict[nn.Parameter, Target] = {}
    skipped: list[Skipped] = []
    for name, module, attribute in found:
        if include and not matches(name, include):
            reason: str | None = "not in include"
        elif matches(name, exclude or ()):
            reason = "excluded"
        elif (skip_first and name in first) or (skip_last and name in last):
            reason = "first or last layer"
        else:
            reason = _reason_to_skip(module, attribute, trains)
        if reason is not None:
            skipped.append(Skipped(name, reason))
            continue
        param = module._parameters[attribute]
        assert param is not None
        targets.setdefault(param, Target(name, param, module))
    if not targets:
        why = "; ".join(f"{name}: {reason}" for name, reason in skipped[:5])
        left = f"all {len(skipped)} weights were left out ({why})"
        raise ValueError(f"Nothing to prune in {type(root).__name__}: {left}.")
    left_out = {n for n, _ in skipped}
    for target in list(targets.values()):
        shared = [n for n, m, a in found if m._parameters.get(a) is target.param and n in left_out]
        if shared and include is None:  # an excluded name means: this tensor stays dense, under each of its names
            del targets[target.param]
            skipped.append(Skipped(target.name, f"shares its tensor with {shared[0]}, which is left out"))
    return list(targets.values()), skipped
