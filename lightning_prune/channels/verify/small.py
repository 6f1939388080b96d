"""A smaller example for a check: one sample, of fewer pixels, on which a network makes the very calls of its graph.

That masked is sliced hangs on channels, and not on how many pixels there are. But a network's code may ask for the
size, and do something else at a smaller one; so a run there counts only if it makes the same calls in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_prune.channels.graph.propagate import operator_name, shape_of
from lightning_prune.channels.trace.program import Program
from lightning_prune.channels.verify.tensors import Reader

PIXELS = 64
"""Images of more pixels on a side are made so small: half of the networks have 2 x 2 pixels at their end then."""

_MOVES = ("adaptive_avg_pool2d", "pad", "constant_pad_nd", "upsample_bilinear2d", "upsample_nearest2d")
"""Operators that move pixels, of every channel alike: code that wants a size has them at another one."""


def smaller(example_input: Any) -> Any | None:
    """One sample of at most `PIXELS` x `PIXELS`, where the one tensor of an example is a batch of images, or None."""
    leaves = [leaf for leaf in pytree.tree_leaves(example_input) if isinstance(leaf, Tensor)]
    if len(leaves) != 1 or leaves[0].ndim != 4 or not leaves[0].is_floating_point():
        return None
    batch, channels, *sides = leaves[0].shape
    if batch < 2 and max(sides) <= PIXELS:
        return None
    shape = (1, channels, *(min(side, PIXELS) for side in sides))
    return pytree.tree_map(lambda v: v.new_empty(shape) if isinstance(v, Tensor) else v, example_input)


class Calls(TorchDispatchMode):
    """Notes the calls of a run in inference mode, as a graph has them."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Any, list[tuple[int, ...]]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = (out,) if isinstance(out, Tensor) else out if isinstance(out, (tuple, list)) else ()
        if shapes := [tuple(t.shape) for t in tensors if isinstance(t, Tensor)]:
            self.seen.append((func, shapes))
        return out

    def aside(self, read: Reader) -> Reader:
        """A reader whose own calls are not the network's."""

        def quiet(name: str) -> Tensor:
            with no_dispatch():
                return read(name)

        return quiet

    def as_in(self, program: Program) -> bool:
        """Whether these are the calls of a graph, with as many dims, and no dim of one that had more there.

        A single pixel or token would hide what an attention does with it. A batch may become one sample.
        """
        inputs = [node.meta["val"] for node in program.placeholders() if node.name in program.inputs]
        batch = next((shape_of(t)[0] for t in inputs if isinstance(t, Tensor) and t.ndim), 1)
        wanted, found = [*_calls(program)], [(f, s) for f, s in self.seen if operator_name(f) not in _MOVES]
        if [(func, len(out)) for func, out in wanted] != [(func, len(out)) for func, out in found]:
            return False
        shapes = [[shape for _, out in calls for shape in out] for calls in (wanted, found)]
        return all(map(partial(_alike, batch), *shapes))


def _alike(batch: int, given: tuple[int, ...], found: tuple[int, ...]) -> bool:
    """Whether two shapes have as many dims, and the second no dim of one where the first has more, a batch aside."""
    start = int(given[:1] == (batch,))
    return len(given) == len(found) and all(n != 1 or m == 1 for m, n in zip(given[start:], found[start:], strict=True))


def _calls(program: Program) -> Iterator[tuple[Any, list[tuple[int, ...]]]]:
    """(operator, shapes that come out) of every call of a graph."""
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if node.op == "call_function" and hasattr(node.target, "_schema") and operator_name(node.target) not in _MOVES:
            tensors = value if isinstance(value, (tuple, list)) else (value,)
            yield node.target, [shape_of(t) for t in tensors if isinstance(t, Tensor)]
