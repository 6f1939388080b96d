"""Runs the rules over the graph of a model, node by node."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from lightning_prune.channels.rules import compute, move, parts, recurrent, reduce  # noqa: F401  they register rules
from lightning_prune.channels.rules.registry import RULES, elementwise
from lightning_prune.channels.trace.call import LARGEST_AXIS, PARAMETRIZED, Call, Context, Value, values
from lightning_prune.channels.trace.program import Program
from lightning_prune.channels.trace.sites import module_path


def describe(node: Node) -> str:
    """Names the place of a call for people: the module's path and class, or the model itself."""
    path, kind = module_path(node)
    return f"{path or 'the model'} ({kind})" if kind else path or "the model"


def shape_of(value: Any) -> tuple[int, ...]:
    """The shape of a fake tensor as plain integers; symbolic sizes count as while tracing, those of data as none."""
    return tuple(int(s.node.hint or 0) if isinstance(s, torch.SymInt) else int(s) for s in value.shape)  # type: ignore[arg-type]


def operator_name(target: Any) -> str:
    """ "conv2d" for aten.conv2d.default, "add" for aten.add_.Tensor, the full name outside ATen."""
    schema = getattr(target, "_schema", None)
    if schema is None:
        return str(getattr(target, "__name__", target))
    space, _, name = str(schema.name).partition("::")
    if space != "aten":
        return str(schema.name)
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def state_values(program: Program, context: Context, tensors: dict[str, Value]) -> list[Value | None]:
    """Labels on every dim of parameters and float buffers: a value for each placeholder, in order.

    tensors: {state-dict name: value}, from the program of another mode; fresh ones are added.
    """
    found: list[Value | None] = []
    for node in program.placeholders():
        meta, name = node.meta["val"], program.states.get(node.name)
        if not isinstance(meta, Tensor):
            found.append(None)
            continue
        held = program.held.get(node.name)
        if held is not None and held.dtype == torch.int64:
            context.constants[node] = held
        shape = shape_of(meta)
        if name is None or not meta.is_floating_point():
            found.append(Value(shape))
            continue
        if name not in tensors:
            axes = {d: context.labels.fresh(s) for d, s in enumerate(shape) if 1 < s <= LARGEST_AXIS}
            tensors[name] = Value(shape, axes)
        context.zeros[node] = True  # what goes of it is zero in the masked network
        found.append(tensors[name])
    return found


def label_program(program: Program, context: Context, tensors: dict[str, Value]) -> list[Value]:
    """Labels a whole program, and returns its outputs; tensors: as for `state_values`."""
    placeholders = state_values(program, context, tensors)
    for name in tensors:  # spectral_norm as a hook: nothing else shows whose product that is
        if name.endswith("_orig") and f"{name.removesuffix('orig')}u" in tensors:
            for labels in tensors[name].axes.values():
                context.labels.freeze(labels, f"{name}: {PARAMETRIZED}")
    return list(values([label_graph(program.graph, placeholders, context)]))


def call_keys(program: Program, nodes: Iterable[Node]) -> dict[Node, Any]:
    """What a call is known by in the program of another mode: its operator, its module and its weights."""
    names = program.states
    return {
        n: (operator_name(n.target), module_path(n)[0], *(names[a.name] for a in n.all_input_nodes if a.name in names))
        for n in nodes
    }


def label_graph(graph: Graph, inputs: list[Any], context: Context) -> Any:
    """The labels of a graph's output, in its structure.

    Nodes carry fake tensors in `meta["val"]`; `inputs` has a `Value` (or anything else) for each placeholder, in order.
    """
    known: dict[Node, Any] = {}
    feed = iter(inputs)
    for node in graph.nodes:
        if node.op == "placeholder":
            known[node] = next(feed)
        elif node.op == "get_attr":
            value = operator.attrgetter(str(node.target))(graph.owning_module)
            known[node] = Value(tuple(value.shape)) if isinstance(value, Tensor) else value
        elif node.op == "output":
            return torch.fx.map_arg(node.args[0], lambda n: known[n])
        else:
            known[node] = _call(node, known, context)
    raise RuntimeError("a graph without an output; this is a bug, please report it")


def _call(node: Node, known: dict[Node, Any], context: Context) -> Any:
    args: Any = torch.fx.map_arg(node.args, known.__getitem__)
    kwargs: Any = torch.fx.map_arg(node.kwargs, known.__getitem__)
    if node.target is operator.getitem:
        return args[0][args[1]] if isinstance(args[0], (tuple, list)) else None
    nested = [i for i, a in enumerate(args) if isinstance(a, GraphModule)]
    if len(nested) == 1:  # a region under autocast or set_grad_enabled: look inside
        return label_graph(args[nested[0]].graph, list(args[nested[0] + 1 :]), context)
    meta = node.meta.get("val")
    outputs = [m for m in (meta if isinstance(meta, (tuple, list)) else [meta]) if isinstance(m, Tensor)]
    labelled = any(value.axes for value in values([args, kwargs]))
    _note_inputs(node, known, context)
    plain = tuple(Value(shape_of(m)) for m in outputs)
    unlabelled = plain if isinstance(meta, (tuple, list)) else next(iter(plain), None)
    if not labelled or not outputs:
        return unlabelled
    name = operator_name(node.target)
    call = Call(context, node, name, bind(node.target, args, kwargs), tuple(map(shape_of, outputs)), describe(node))
    rule = RULES.get(name)
    if "fake_quant" in name:
        return call.hold_all("the network is prepared for quantization: prune before that")
    if name.startswith("_weight_norm") or (rule is None and ".parametrizations." in f".{module_path(node)[0]}"):
        return call.hold_all(PARAMETRIZED)
    if rule is None and torch.Tag.pointwise in getattr(node.target, "tags", ()):
        rule = elementwise
    if rule is None:
        call.freeze_all("operator without a rule")
        return unlabelled
    return rule(call)


def _note_inputs(node: Node, known: dict[Node, Any], context: Context) -> None:
    """Remembers the channels that enter a module (or one of its children) from outside."""
    path = module_path(node)[0]
    for source in node.all_input_nodes:
        value = known.get(source)
        if not isinstance(value, Value) or not value.axes or source.op != "call_function":
            continue
        origin, entered = module_path(source)[0], path
        while entered and origin != entered and not origin.startswith(f"{entered}."):
            context.inputs += [(entered, labels) for labels in value.axes.values()]
            entered = entered.rpartition(".")[0]


def bind(target: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """Arguments by schema name, defaults filled in."""
    schema = getattr(target, "_schema", None)
    if schema is None:
        return {**{str(i): a for i, a in enumerate(args)}, **kwargs}
    bound: dict[str, Any] = {}
    for i, argument in enumerate(schema.arguments):
        if i < len(args):
            bound[argument.name] = args[i]
        elif argument.name in kwargs:
            bound[argument.name] = kwargs[argument.name]
        elif argument.has_default_value():
            bound[argument.name] = argument.default_value
    return bound
