"""How a model is called while it is looked at: its mode, its hooks, and its arguments."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from lightning_prune.support.tensors import tensor_caches

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Arguments(NamedTuple):
    """Positional and keyword arguments of one call."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def split_input(example_input: Any) -> Arguments:
    """The arguments that an example input stands for: a tuple is positional ones, a dict keywords, else it is one."""
    if isinstance(example_input, Arguments):
        return example_input
    if isinstance(example_input, Mapping):
        return Arguments((), dict(example_input))
    return Arguments(example_input if isinstance(example_input, tuple) else (example_input,), {})


def join_input(example_input: Any, example_kwargs: Mapping[str, Any] | None) -> Any:
    """An example input with keyword arguments beside it."""
    if not example_kwargs:
        return example_input
    args, kwargs = split_input(example_input)
    return Arguments(args, {**kwargs, **example_kwargs})


@contextlib.contextmanager
def mode(model: nn.Module, training: bool, *, noise: bool = True, statistics: bool = True) -> Iterator[None]:
    """Puts all modules in train or eval mode, and back each to its own mode after.

    Without ``noise`` dropout and its kind stay in eval mode, without ``statistics`` the norms do.
    """
    before = [(m, m.training) for m in model.modules()]
    try:
        for m, _ in before:
            quiet = (not noise and drops(m)) or (not statistics and isinstance(m, _NormBase))
            m.training = training and not quiet
        yield
    finally:
        for m, was in before:
            m.training = was


def drops(module: nn.Module) -> bool:
    """Whether a module is dropout of some kind: of values, channels, paths, patches or blocks."""
    name = type(module).__name__.lower()
    return ("drop" in name or name == "stochasticdepth") and next(module.parameters(), None) is None


@contextlib.contextmanager
def attributes_kept(model: nn.Module) -> Iterator[None]:
    """Empty tensor caches inside; every plain attribute of every module, and what its lists hold, is put back
    after.

    Some models cache tensors in eval mode (attention biases). A cached tensor would hide what a run is about, and
    a tensor of the run must not stay in the user's model.
    """
    saved = []
    lists: list[tuple[list[Any], list[Any]]] = []
    for module in model.modules():
        saved.append((module, dict(vars(module))))
        held = [(n, v) for n, v in vars(module).items() if isinstance(v, (dict, list)) and n[0] != "_"]
        if held:
            lists += [(v, list(v)) for _, v in held if type(v) is list]
            own = {name: dict(v) for name, v in held if isinstance(v, dict)}
            module.__dict__.update(own | {name: {} for name, _ in tensor_caches(module)})
    try:
        yield
    finally:
        for module, before in saved:
            now = vars(module)
            for name in now.keys() - before.keys():
                del now[name]
            before["training"] = module.training
            now.update(before)
        for kept, content in lists:  # a hook may hold the very list
            kept[:] = content


@contextlib.contextmanager
def without_hooks(model: nn.Module) -> Iterator[None]:
    """Inside, no hooks run but those that are the network's own.

    Its own: they are PyTorch's, or hold a module or something that a module holds (a network that collects features).
    """
    modules = list(model.modules())
    saved = [(vars(m), name, hooks) for m in modules for name in _HOOKS if (hooks := vars(m).get(name))]
    plain = (str, int, float, bool, tuple, type, type(None))
    held = {id(m) for m in modules} | {
        id(v)
        for m in (modules if saved else ())
        for n, v in vars(m).items()
        if n not in _HOOKS and not isinstance(v, plain)
    }
    try:
        for attributes, name, hooks in saved:
            attributes[name] = OrderedDict((k, hook) for k, hook in hooks.items() if _is_own(hook, held))
        yield
    finally:
        for attributes, name, hooks in saved:
            attributes[name] = hooks


def _is_own(hook: Any, held: set[int]) -> bool:
    if isinstance(hook, partial):
        return any(_is_own(part, held) for part in (hook.func, *hook.args, *hook.keywords.values()))
    if str(getattr(hook, "__module__", None) or type(hook).__module__).startswith("torch."):
        return True
    cells = [cell.cell_contents for cell in getattr(hook, "__closure__", None) or () if _is_filled(cell)]
    return bool(held & {id(part) for part in (hook, getattr(hook, "__self__", None), *cells)})


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
