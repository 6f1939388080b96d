"""What a model runs in train mode alone: auxiliary heads, deep supervision, anything under `if self.training`.

A channel that only such code reads is not seen in eval mode. To trace a model twice takes twice the time, so it is done
only where the code looks at its mode or leaves parameters unused, and where the two modes then make other calls.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.nn.modules.batchnorm import _NormBase
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_prune.support.modes import attributes_kept, drops, mode, split_input, without_hooks

_LIBRARIES = ("torch", "lightning", "pytorch_lightning")  # their own layers do the same in both modes, or drop values


def unused(program: ExportedProgram) -> list[str]:
    """The parameters that no call of a graph uses, by name."""
    used = {node.name for node in program.graph.nodes if node.op == "placeholder" and node.users}
    specs = program.graph_signature.input_specs
    return [s.target for s in specs if s.kind == InputKind.PARAMETER and s.target and s.arg.name not in used]


def trains_apart(model: nn.Module, example_input: Any, program: ExportedProgram) -> bool:
    """Whether a model makes other calls in train mode than in its exported eval graph, dropout and norms aside."""
    if not unused(program) and not any(map(_looks_at_mode, model.modules())):
        return False
    try:
        return _calls(model, example_input, True) != _calls(model, example_input, False)
    except Exception:  # of the user's code; whoever traces it says what went wrong
        return True


def entries(model: nn.Module, names: list[str]) -> Iterator[tuple[str, int]]:
    """Iterates over (path, number of channels that come in) of modules all of whose parameters are among `names`.

    Of nested ones the outermost; what does not train is left out.
    """
    left, done = set(names), ""
    for path, module in model.named_modules():
        own = {f"{path}.{name}" if path else name: p for name, p in module.named_parameters()}
        if not own or not own.keys() <= left or not any(p.requires_grad for p in own.values()):
            continue
        if done and path.startswith(f"{done}."):
            continue
        done = path
        layers = (m for m in module.modules() if isinstance(getattr(m, "weight", None), Tensor) and m.weight.ndim > 1)
        for first in layers:
            yield path, int(getattr(first, "in_channels", getattr(first, "in_features", first.weight.shape[1])))
            break


def _looks_at_mode(module: nn.Module) -> bool:
    kind: Any = type(module)
    return not isinstance(module, _NormBase) and not drops(module) and _branches_on_mode(kind)


@cache
def _branches_on_mode(kind: Any) -> bool:
    """Whether the code of a class, that of libraries aside, may call something else by an attribute `training`."""
    own = [base for base in kind.__mro__ if base.__module__.partition(".")[0] not in _LIBRARIES]
    functions = [getattr(f, "__func__", getattr(f, "fget", f)) for base in own for f in vars(base).values()]
    return any(_branches(f) for f in functions if isinstance(f, FunctionType) and "training" in _names(f.__code__))


def _names(code: CodeType) -> set[str]:
    inner = (c for c in code.co_consts if isinstance(c, CodeType))
    return set(code.co_names).union(*map(_names, inner))


def _branches(function: FunctionType) -> bool:
    """Whether a function does more with `training` than to hand it to dropout, or to choose a number by it."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, SyntaxError, TypeError):
        return True
    harmless: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _is_functional(ast.unparse(node.func)):
            harmless |= {*node.args, *(k.value for k in node.keywords)}
        elif isinstance(node, ast.IfExp) and not any(isinstance(n, ast.Call) for n in ast.walk(node)):
            harmless.add(node.test)
    found = (n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr == "training")
    return any(n not in harmless for n in found)


def _is_functional(name: str) -> bool:
    last = name.rpartition(".")[2]
    return name.startswith(("F.", "torch.", "nn.functional.")) or "drop" in last or last == "train"


class _Recorder(TorchDispatchMode):
    """Notes every call and the shapes that come out of it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if "dropout" not in str(func):  # a function that is called with a rate of zero
            self.calls.append((str(func), _shapes(out)))
        return out


def _shapes(value: Any) -> list[tuple[int, ...]]:
    return [tuple(t.shape) for t in pytree.tree_leaves(value) if isinstance(t, Tensor)]


@contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    """Puts back what code writes into buffers: a counter without dims counts on even under fake tensors."""
    before = [(buffer, buffer.detach().clone()) for buffer in model.buffers() if buffer.ndim == 0]
    try:
        yield
    finally:
        for buffer, was in before:
            buffer.copy_(was)


def _calls(model: nn.Module, example_input: Any, training: bool) -> list[tuple[str, Any]]:
    """What a model calls and gives, run on fake tensors, without dropout and with the norms in eval mode."""
    recorder, fake = _Recorder(), FakeTensorMode(allow_non_fake_inputs=True)
    quiet = mode(model, training, noise=False, statistics=False)
    with _buffers_kept(model), attributes_kept(model), quiet, without_hooks(model), torch.no_grad(), fake:
        args, kwargs = pytree.tree_map_only(Tensor, fake.from_tensor, split_input(example_input))
        with recorder:
            out = model(*args, **kwargs)
    return [*recorder.calls, ("output", _shapes(out))]
