"""From a model to the graph of ATen calls that everything else reads: the model runs once, and its calls are noted.

The run is on fake tensors, so nothing is computed. It is in inference mode: there an operator that is made of others
(`linear`, `reshape`, attention) comes whole to a dispatch mode, as the rules know it, and not in its parts.

What a model does only while it is exported is not in such a graph: timm then resamples position embeddings that have
the right size already. A module or tensor with several names has the first of them here, as `named_modules` gives it,
while `torch.export` may take another: channel groups are the same, under other names.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import operator
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import Graph, Node
from torch.fx.node import map_aggregate
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_prune.channels.trace.export import export
from lightning_prune.channels.trace.known import known_out, made
from lightning_prune.channels.trace.program import Program
from lightning_prune.support.modes import attributes_kept, mode, split_input, without_hooks

log = logging.getLogger(__name__)

_PLAIN = (int, float, bool, str, type(None))


def trace_program(
    model: nn.Module, example_input: Any, *, training: bool = False, noise: bool = True, statistics: bool = True
) -> Program:
    """The graph of a model, recorded; or exported, which takes much longer, where a run on fake tensors cannot tell it.

    The model's mode, hooks and attributes are as before afterwards. ``noise`` and ``statistics`` are as for `mode`.

    Raises:
        TraceError: neither works; with the first line of what went wrong.
    """
    how: dict[str, Any] = {"training": training, "noise": noise, "statistics": statistics}
    try:
        return record(model, example_input, **how)
    except Exception as error:  # of the model's own code, or of what a fake tensor has no answer to
        log.debug("%s is exported, as it cannot be recorded: %r", type(model).__name__, error)
    return Program.of_export(export(model, example_input, **how))


def record(
    model: nn.Module, example_input: Any, *, training: bool = False, noise: bool = True, statistics: bool = True
) -> Program:
    """As `trace_program`, without the other way; raises what the model raises, and TypeError for what has no graph."""
    collecting = gc.isenabled()
    gc.disable()  # a run makes many small objects and no garbage worth looking for
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with (
            attributes_kept(model), mode(model, training, noise=noise, statistics=statistics), without_hooks(model),
            torch.inference_mode(), _own_code(), fake,
        ):  # fmt: skip
            recorder = Recorder(model, fake)
            given = pytree.tree_map(lambda v: recorder.input(v, fake), split_input(example_input))
            with _stand_ins(model, recorder.fakes), _stack(model, recorder.stack), recorder:
                out = model(*given.args, **given.kwargs)
        return recorder.finish(out)
    finally:
        if collecting:
            gc.enable()


class Recorder(TorchDispatchMode):
    """Notes every call, and which call, parameter or constant each tensor comes from.

    Attributes:
        fakes: {id of a parameter or buffer: the fake tensor that runs in its place}.
        stack: where the run is, innermost last: {path: (path, class)}, as export has it on nodes.
    """

    def __init__(self, model: nn.Module, fake: FakeTensorMode) -> None:
        super().__init__()
        self.graph, self.stack = Graph(), [{"": ("", type(model))}]
        self.fakes: dict[int, Tensor] = {}
        self._states: dict[str, str] = {}
        parameters = list(model.named_parameters())
        self._parameters = frozenset(name for name, _ in parameters)
        self._inputs: list[str] = []
        self._held: dict[str, Tensor] = {}
        self._nodes: dict[int, Node] = {}
        self._alive: list[Tensor] = []  # an id may not be given away again
        self._first: Node | None = None  # of the calls
        for name, tensor in (*parameters, *model.named_buffers()):
            if type(tensor) not in (Tensor, nn.Parameter, nn.Buffer) or tensor.layout != torch.strided:
                raise TypeError(f"{name} is a {type(tensor).__name__} of layout {tensor.layout}")
            twin = made(fake, tensor.shape, tensor.stride(), tensor.dtype, tensor.device)  # there are hundreds
            self.fakes[id(tensor)] = twin
            node = self._placeholder(name.replace(".", "_"), twin, tensor)
            self._states[node.name] = name
            if not tensor.is_floating_point():
                self._held[node.name] = tensor

    def input(self, value: Any, fake: FakeTensorMode) -> Any:
        """Takes a leaf of the example input; returns what runs in its place."""
        twin = fake.from_tensor(value, static_shapes=True) if isinstance(value, Tensor) else value
        self._inputs.append(self._placeholder("input", twin).name)
        return twin

    def finish(self, out: Any) -> Program:
        """The program, once the model has given `out`."""
        leaves = pytree.tree_leaves(out)
        for value in leaves:
            if not isinstance(value, (Tensor, *_PLAIN)):
                raise TypeError(f"an output of {type(value).__name__}, which may hold tensors")
        self.graph.output(tuple(self._node(v) if isinstance(v, Tensor) else v for v in leaves))
        return Program(self.graph, self._states, self._parameters, tuple(self._inputs), self._held)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        changes = func._schema.is_mutable
        before = args[0].shape if torch.Tag.inplace_view in func.tags else None
        out = known_out(func, args)
        if out is None:
            out = func(*args, **(kwargs or {}))
        several = isinstance(out, (tuple, list))
        if before is not None and before != out.shape:
            raise TypeError(f"{func} changes a shape in place, which the nodes before it would show too")
        if not isinstance(out, Tensor) and not (several and any(isinstance(v, Tensor) for v in out)):
            if changes:
                raise TypeError(f"{func} changes tensors and gives none")
            return out
        node = self._call(func.overloadpacket.__name__, func, *map_aggregate((args, kwargs or {}), self._argument))
        node.meta["val"] = tuple(out) if several else out
        if not several:
            self._remember(out, node, changes)
        for i, value in enumerate(out if several else ()):
            if isinstance(value, Tensor):
                item = self._call("getitem", operator.getitem, (node, i), {})
                item.meta["val"] = value
                self._remember(value, item, changes)
        return out

    def _call(self, name: str, target: Any, args: Any, kwargs: Any) -> Node:
        node = self.graph.create_node("call_function", target, args, kwargs, name=name)
        node.meta["nn_module_stack"] = self.stack[-1]
        self._first = self._first or node
        return node

    def _argument(self, value: Any) -> Any:
        return self._node(value) if isinstance(value, Tensor) else value

    def _node(self, tensor: Tensor) -> Node:
        """Where a tensor comes from; one that nothing is known of is a constant, unless it was made in the run."""
        if id(tensor) not in self._nodes:
            if isinstance(tensor, FakeTensor):
                raise TypeError("a tensor that was made by no call")
            self._held[self._placeholder("constant", tensor).name] = tensor
        return self._nodes[id(tensor)]

    def _placeholder(self, name: str, value: Any, *others: Tensor) -> Node:
        with self.graph.inserting_before(self._first) if self._first else contextlib.nullcontext():
            node = self.graph.placeholder(name)
        node.meta["val"] = value
        for tensor in (value, *others):
            if isinstance(tensor, Tensor):
                self._remember(tensor, node)
        return node

    def _remember(self, tensor: Tensor, node: Node, changed: bool = True) -> None:
        """A weight that an operator gives back as it is (`contiguous`, `to`) is still that weight."""
        if not changed and id(tensor) in self._nodes and self._nodes[id(tensor)].op == "placeholder":
            return
        self._nodes[id(tensor)] = node
        self._alive.append(tensor)


@contextlib.contextmanager
def _stand_ins(model: nn.Module, fakes: Mapping[int, Tensor]) -> Iterator[None]:
    """Inside, the model has fake tensors as its parameters and buffers."""
    before = [(vars(m), name, vars(m)[name]) for m in model.modules() for name in ("_parameters", "_buffers")]
    try:
        for attributes, name, held in before:
            attributes[name] = {key: fakes.get(id(tensor), tensor) for key, tensor in held.items()}
        yield
    finally:
        for attributes, name, held in before:
            attributes[name] = held


@contextlib.contextmanager
def _stack(model: nn.Module, stack: list[Any]) -> Iterator[None]:
    """Inside, the last of `stack` says where a run of the model is."""
    places = {id(module): {path: (path, type(module))} for path, module in model.named_modules()}

    def enter(module: nn.Module, args: Any) -> None:
        if id(module) in places:
            stack.append(places[id(module)])

    def leave(module: nn.Module, args: Any, out: Any) -> None:
        if id(module) in places:
            stack.pop()

    handles = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _own_code() -> Iterator[None]:
    """No warnings, no casts of an autocast around the run, and no fused layer in place of a transformer's own code."""
    fused = torch.backends.mha.get_fastpath_enabled()
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fused)
