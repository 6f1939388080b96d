"""The rewritten graph: for models whose own code cannot express the widths that are left.

The model object, its children, parameters and state-dict keys stay; only `forward` (and `forward_features`, where the
model has it) run from graphs in which every integer that counts channels has been rewritten. There is one graph for
train mode and one for eval mode, over the same parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.utils import _pytree as pytree

from lightning_prune.channels.graph.graph import ChannelGraph
from lightning_prune.channels.graph.propagate import operator_name
from lightning_prune.channels.graph.vectors import kept_count, kept_mask
from lightning_prune.channels.surgery.denominators import tell_call
from lightning_prune.channels.surgery.retrace import FEATURES, Trace, traces
from lightning_prune.channels.trace.call import Options
from lightning_prune.errors import PlanError
from lightning_prune.plan.plan import PruningPlan
from lightning_prune.support.swap.class_swap import data_key, is_swapped, recipe, restore, swap

_RECIPE = "programs"
_PROGRAMS = data_key(_RECIPE)


@dataclass
class GraphCode:
    """One rewritten graph, and how its inputs are found in a model.

    Attributes:
        module: the graph as a module without tensors of its own; it takes them as arguments.
        sources: for each placeholder ("state", tensor name), ("input", position) or ("constant", tensor).
        out_spec: how the flat outputs are put together.
    """

    module: GraphModule
    sources: list[tuple[str, Any]]
    out_spec: Any

    def __call__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        def read(name: str) -> Any:
            path, _, leaf = name.rpartition(".")
            return getattr(model.get_submodule(path), leaf)

        return pytree.tree_unflatten(self.module(*self.feed((args, kwargs), read)), self.out_spec)

    def feed(self, inputs: Any, read: Callable[[str], Any]) -> list[Any]:
        """What the graph takes, with a tensor of the state dict as `read` makes it."""
        flat = pytree.tree_leaves(inputs)
        return [read(w) if kind == "state" else flat[w] if kind == "input" else w for kind, w in self.sources]


Programs = dict[tuple[str, bool], GraphCode]
"""Rewritten graphs of a model: {(method, training): code}."""


def build(model: nn.Module, example_input: Any, plan: PruningPlan, options: Options) -> Programs:
    """Exports the dense model for each method and mode, and rewrites its widths for a plan."""
    programs: Programs = {}
    for training in (True, False):
        for trace in traces(model, example_input, training):
            graph = ChannelGraph.of_program(trace.program, model, options, free_outputs=int(FEATURES in trace.methods))
            constants = rewrite(graph, keep_of_plan(graph, plan))
            programs |= {(method, training): code for method, code in _codes(trace, constants).items()}
    return programs


def build_quiet(model: nn.Module, example_input: Any, plan: PruningPlan, options: Options) -> GraphCode:
    """The rewritten graph of `forward` in train mode without dropout and its kind, for comparison."""
    trace = traces(model, example_input, True, noise=False)[0]
    graph = ChannelGraph.of_program(trace.program, model, options, free_outputs=int(FEATURES in trace.methods))
    return _codes(trace, rewrite(graph, keep_of_plan(graph, plan)))["forward"]


def keep_of_plan(graph: ChannelGraph, plan: PruningPlan) -> Tensor:
    """The channel groups of another graph of the model that a plan keeps; PlanError if it cuts what has to stay."""
    keep = torch.ones(graph.size, dtype=torch.bool)
    names = {graph.program.states.get(node.name) for node in graph.program.placeholders() if node.users}
    cuts = {name: cut for name, cut in plan.cuts.items() if name in names}  # the rest is not in this method's graph
    for name, cut in cuts.items():
        for dim, kept in cut.kept.items():
            ids = graph.axes.get(name, {}).get(dim)
            if ids is None:
                raise PlanError(f"the plan cuts dim {dim} of {name}, which has no channels in this graph")
            gone = torch.ones(len(ids), dtype=torch.bool)
            gone[torch.tensor(kept)] = False
            if bool((ids[gone] < 0).any()):
                reasons = graph.frozen_reasons[-1 - int(ids[gone].min())]
                raise PlanError(f"the plan cuts dim {dim} of {name}, which is frozen in this graph: {reasons}")
            keep[ids[gone]] = False
    for name, cut in cuts.items():
        for dim, kept in cut.kept.items():
            if kept_count(graph.axes[name][dim], keep) != len(kept):
                raise PlanError(f"the plan cuts dim {dim} of {name} in another way than this graph ties its channels")
    return keep


def rewrite(graph: ChannelGraph, keep: Tensor) -> dict[str, Tensor]:
    """Rewrites, in place, every integer of the graph that counts channels.

    Returns {placeholder name: what takes its place}, for numbers of channels that stand in a tensor.
    """
    for count in graph.counts:
        after = kept_count(count.ids, keep)
        if after != count.value and operator_name(count.node.target) not in ("chunk", "split", "unsafe_split"):
            _set_argument(count.node, count.argument, count.position, after)
    for parts in graph.equal_parts:
        sizes = [kept_count(p, keep) for p in parts.parts]
        if sizes != [len(p) for p in parts.parts]:
            node = parts.node
            dim = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
            node.target = torch.ops.aten.split_with_sizes.default
            node.args, node.kwargs = (node.args[0], sizes, dim), {}
    for place in graph.denominators:
        if kept_count(place.ids, keep) < len(place.ids):
            tell_call(place)
    constants = {}
    for pick in graph.picks:
        left = pick.numbers.cpu()[kept_mask(pick.after, keep)]
        constants[pick.placeholder] = (kept_mask(pick.before, keep).cumsum(0) - 1)[left].to(pick.numbers.device)
    return constants


def _set_argument(node: Node, argument: str, position: int | None, value: int) -> None:
    """Replaces one integer of a call; -1 stays, and a symbolic size in a shape (the batch times heads) becomes it."""
    index = next(i for i, a in enumerate(node.target._schema.arguments) if a.name == argument)  # type: ignore[union-attr]
    holder = node.args[index] if index < len(node.args) else node.kwargs[argument]
    new: Any = value
    if position is not None:
        items = list(holder)  # type: ignore[arg-type]
        symbolic = isinstance(items[position], Node)
        if items[position] == -1 or (symbolic and -1 in items):
            return
        items[position] = -1 if symbolic else value
        new = items
    if index < len(node.args):
        node.update_arg(index, new)
    else:
        node.update_kwarg(argument, new)


def _codes(trace: Trace, constants: dict[str, Tensor]) -> dict[str, GraphCode]:
    """Takes the graph of each method out of a program, without its tensors."""
    sources = trace.program.sources(constants)
    module = trace.program.graph.owning_module
    assert module is not None  # it was exported
    modules = [_without_checks(module)]
    if len(trace.methods) == 2:
        modules = list(_apart(modules[0]))
    return {
        method: GraphCode(module, sources, spec)
        for module, (method, spec) in zip(modules, trace.methods.items(), strict=True)
    }


def _apart(module: GraphModule) -> tuple[GraphModule, GraphModule]:
    """Returns (the graph without its last output, the graph up to its last output)."""
    end = module.graph.output_node()
    outputs: list[Any] = list(end.args[0])  # type: ignore[arg-type]
    last = outputs.pop()
    head, copies = Graph(), dict[Node, Node]()
    for node in module.graph.nodes:
        copies[node] = head.node_copy(node, copies.__getitem__)
        if node is last:
            break
    head.output((copies[last],))
    end.args = (tuple(outputs),)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module, GraphModule(module, head)


def _without_checks(module: GraphModule) -> GraphModule:
    """Drops dtype assertions (the model may be converted later), here and in nested graphs, and what traces left."""
    for child in module.children():
        if isinstance(child, GraphModule):
            _without_checks(child)
    for node in list(module.graph.nodes):
        if node.op == "call_function" and operator_name(node.target).startswith("_assert"):
            module.graph.erase_node(node)
        else:
            node.meta = {}
    module.graph.eliminate_dead_code()
    module.graph._tracer_cls = None  # export's own cannot trace the graph again, as unpickling does
    module.__dict__.pop("_tracer_cls", None)
    module.recompile()
    return module


def build_from_plan(plan: PruningPlan, model: nn.Module) -> Programs:
    """Traces a dense model again, with the inputs that the plan remembers."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    widths = [p.dtype for p in model.parameters() if p.is_floating_point()]

    def dtype_of(name: str) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, name)
        # the model may have been converted since
        return widths[0] if dtype.is_floating_point and widths and dtype not in widths else dtype

    example = tuple(torch.zeros(shape, dtype=dtype_of(dtype), device=device) for shape, dtype in plan.inputs)
    return build(model, example, plan, Options.of_plan(plan.settings))


@recipe(_RECIPE, copied=True)
def _rewritten(base: type[nn.Module]) -> dict[str, Any]:
    members: dict[str, Any] = {
        "forward": _runner("forward"),
        "__doc__": f"{base.__name__}, run from a rewritten graph.",
    }
    if hasattr(base, "forward_features"):
        members["forward_features"] = _runner("forward_features")
    return members


def _runner(method: str) -> Any:
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        return programs_of(self)[method, self.training](self, args, kwargs)

    return run


def install(model: nn.Module, programs: Programs) -> None:
    """Makes a (sliced) model run from rewritten graphs. The object and its tensors stay."""
    swap(model, _RECIPE, data=programs)


def programs_of(model: nn.Module) -> Programs:
    """The rewritten graphs that a model runs from."""
    programs: Programs = model.__dict__[_PROGRAMS]
    return programs


def uninstall(model: nn.Module) -> None:
    """Makes a model run its own code again. Nothing happens to one that does."""
    restore(model, _RECIPE)


def is_rewritten(model: nn.Module) -> bool:
    """Whether a model, or a part of it, runs from rewritten graphs."""
    return any(is_swapped(module, _RECIPE) for module in model.modules())
