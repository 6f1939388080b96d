"""What a model runs in train mode alone: auxiliary heads, deep supervision, anything under `if self.training`.

A channel that only such code reads is not seen in eval mode. To trace a model twice takes twice the time, so it is done
only where the code looks at its mode or leaves parameters unused, and where the two modes then make other calls.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from functools import cache
from types import CodeType, FunctionType
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils import _pytree as pytree

from lightning_prune.channels.trace.program import Program
from lightning_prune.support.modes import drops

_LIBRARIES = ("torch", "lightning", "pytorch_lightning")  # their own layers do the same in both modes, or drop values


def may_train_apart(model: nn.Module, program: Program) -> bool:
    """Whether a model may make other calls in train mode than in its graph in eval mode, dropout and norms aside."""
    return bool(program.unused()) or any(map(_looks_at_mode, model.modules()))


def same_calls(first: Program, second: Program) -> bool:
    """Whether two graphs make the same calls, dropout aside, and give the same shapes."""
    return [*_calls(first)] == [*_calls(second)]


def _calls(program: Program) -> Iterator[tuple[str, list[tuple[int, ...]], list[bool]]]:
    """(operator, shapes that come out, switches) of every call; the operator of the last is "output"."""
    for node in program.graph.nodes:
        if node.op == "output":
            yield "output", _shapes([n.meta["val"] for n in node.all_input_nodes]), []
        elif node.op == "call_function" and "dropout" not in str(node.target):
            yield str(node.target), _shapes(node.meta.get("val")), [a for a in node.args if isinstance(a, bool)]


def _shapes(value: Any) -> list[tuple[int, ...]]:
    return [tuple(t.shape) for t in pytree.tree_leaves(value) if isinstance(t, Tensor)]


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
