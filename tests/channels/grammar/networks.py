"""Random networks: a description as plain data, and the module that it stands for.

    {"inputs": [["map", [3, 8, 8]]], "steps": [["conv", [0], {"out": 6, ...}], ["relu", [1], {}]], "raw": []}

Values are numbered: the inputs first, then what comes out of each step. What nothing reads gets a linear head of its
own, or is given as it is if it is `raw`. A step with a fourth entry, "late", runs in train mode alone, and so does what
depends on it. ["again", [4], {"step": 0}] calls the module of an earlier step once more.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tests.channels.grammar import maps, rows  # noqa: F401  they register steps
from tests.channels.grammar.steps import STEPS, Pick, T, Value

Description = dict[str, Any]
IMAGE = ["map", [3, 8, 8]]
INPUTS = (
    *([IMAGE],) * 4, [["tokens", [6, 5]]], [["map", [4, 16]]], [["vector", [7]]], [["map", [2, 4, 4, 4]]],
    [["ids", [6]]], [IMAGE, IMAGE], [IMAGE, ["vector", [6]]], [["map", [6, 4, 4]], ["map", [6, 4, 4]]],
)  # fmt: skip
OFTEN = ("conv", "conv", "conv", "batch norm", "batch norm", "relu", "linear", "linear", "add", "add", "cat") * 3
FIRST = ("conv", "linear", "embedding", "transposed conv", "attention", "recurrent")
BACK = 4  # values that a step may look back
CLASSES = 3


def generate(pick: Pick, most: int) -> Description:
    """A network of up to `most` steps."""
    inputs = pick(INPUTS)
    made = _Made(inputs)
    for _ in range(pick([2, 3, *range(4, most + 1), *range(4, most + 1)])):
        _grow(pick, made)
    free = [i for i in made.leaves() if made.values[i].kind != "ids"]
    raw = [i for i in free if len(free) > 1 and pick((False, False, False, True))]
    return {"inputs": inputs, "steps": made.steps, "raw": raw}


def _grow(pick: Pick, made: _Made) -> None:
    """Adds a step on one of the last values, if one can be put there."""
    back = range(len(made.values) - 1, max(-1, len(made.values) - 1 - BACK), -1)
    first = pick([back[0]] * 6 + list(back))
    x = made.values[first]
    known = (*OFTEN, *STEPS) if made.steps else FIRST
    names = [name for name in known if x.kind in STEPS[name].takes[0].split("|")]
    again = [i for i, taken in enumerate(made.taken) if taken == (x,) and made.steps[i][0] in ("conv", "linear")]
    name = pick([*names, *(["again"] if again else [])])
    if name == "again":
        made.add([name, [first], {"step": pick(again)}])
        return
    operands = [first]
    for kinds in STEPS[name].takes[1:]:
        fits = [i for i, v in enumerate(made.values) if i != first and (v == x if kinds == "=" else v.kind in kinds)]
        if not fits:
            return
        operands.append(pick(fits[::-1]))
    options = STEPS[name].options(pick, *(made.values[i] for i in operands))
    if options is not None:
        late = len(made.steps) > 1 and pick((False,) * 14 + (True,))
        made.add([name, operands, options, *(["late"] if late else [])])


class Seeded(Pick):
    """Choices of a random generator: the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def __call__(self, options: Sequence[T]) -> T:
        """One of them."""
        return self._random.choice(list(options))


class _Made:
    """A network step by step: its modules, and the values that they give."""

    def __init__(self, inputs: Sequence[Any]) -> None:
        self.values = [Value(kind, tuple(shape)) for kind, shape in inputs]
        self.late, self.inputs = [False] * len(inputs), len(inputs)
        self.steps: list[Any] = []
        self.modules: list[nn.Module] = []
        self.taken: list[tuple[Value, ...]] = []

    def add(self, step: Any) -> None:
        """Builds a step, and runs it on zeros for the shapes of what comes out."""
        name, operands, options, *late = step
        given = tuple(self.values[i] for i in operands)
        again = name == "again"
        module = self.modules[options["step"]] if again else STEPS[name].module(*given, **options)
        kind = STEPS[self.steps[options["step"]][0] if again else name].gives or given[0].kind
        with torch.no_grad():
            out = module.eval()(*(zeros(v) for v in given))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            self.values.append(Value(kind, tuple(tensor.shape[1:])))
            self.late.append(bool(late) or any(self.late[i] for i in operands))
        self.steps.append(step)
        self.modules.append(module)
        self.taken.append(given)

    def leaves(self) -> list[int]:
        """The values that the network gives: what is read by none, in eval mode where the value is there then."""
        read: set[int] = set()
        at = self.inputs
        for step in self.steps:
            late = self.late[at]
            read |= {i for i in step[1] if not late or self.late[i]}
            at += self.width(step)
        return [i for i in range(self.inputs, len(self.values)) if i not in read]

    def width(self, step: Any) -> int:
        """How many values come out of a step."""
        return 2 if step[0] == "parts" else 1


def zeros(value: Value) -> Tensor:
    """A tensor of that shape, of two samples."""
    return torch.zeros(2, *value.shape, dtype=torch.int64 if value.kind == "ids" else None)


class Network(nn.Module):
    """The network of a description; it gives a tuple."""

    def __init__(self, description: Description) -> None:
        super().__init__()
        made = _Made(description["inputs"])
        for step in description["steps"]:
            made.add(step)
        own = [i for i, step in enumerate(made.steps) if step[0] != "again"]
        self.steps = nn.ModuleDict({str(i): made.modules[i] for i in own})
        self._calls = [
            (str(s[2]["step"] if s[0] == "again" else i), s[1], made.width(s)) for i, s in enumerate(made.steps)
        ]
        self._ends, self._late = made.leaves(), made.late
        self.heads = nn.ModuleDict(
            {str(i): nn.Linear(made.values[i].channels, CLASSES) for i in self._ends if i not in description["raw"]}
        )
        self._kinds = [v.kind for v in made.values]

    def forward(self, *inputs: Tensor) -> Any:
        """A tuple of [N, classes], or what is raw."""
        return self._run(inputs, False)

    def _run(self, inputs: tuple[Tensor, ...], late: bool) -> Any:
        values: list[Any] = list(inputs)
        for name, operands, width in self._calls:
            if self._late[len(values)] and not late:
                values += [None] * width
                continue
            out = self.steps[name](*(values[i] for i in operands))
            values += out if width > 1 else [out]
        return tuple(self._head(i, values[i]) for i in self._ends if values[i] is not None)

    def _head(self, i: int, x: Tensor) -> Tensor:
        if str(i) not in self.heads:
            return x
        if self._kinds[i] == "map":
            x = x.mean(tuple(range(2, x.ndim)))
        elif self._kinds[i] == "tokens":
            x = x.mean(1)
        return self.heads[str(i)](x)


class TrainedApart(Network):
    """One that runs more in train mode."""

    def forward(self, *inputs: Tensor) -> Any:
        """As that of a network, with more at the end in train mode."""
        return self._run(inputs, self.training)


def build(description: Description, seed: int = 0) -> nn.Module:
    """The network of a description in eval mode, in float64, everything in it at random."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        late = any(len(step) > 3 for step in description["steps"])
        model = (TrainedApart if late else Network)(description).double()
        for module in model.modules():
            for name, p in module.named_parameters(recurse=False):
                if p.ndim == 1:
                    zero = name == "weight" and not bool(p.any())
                    with torch.no_grad():
                        p.copy_(
                            0.2 * torch.randn_like(p) if name != "weight" else (torch.rand_like(p) + 0.5) * (not zero)
                        )
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_(0.0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
        return model.eval()


def example(description: Description, batch: int = 2) -> tuple[Tensor, ...]:
    """What the network takes, at random."""
    generator = torch.Generator().manual_seed(5)
    found = []
    for kind, shape in description["inputs"]:
        if kind == "ids":
            found.append(torch.randint(0, 7, (batch, *shape), generator=generator))
        else:
            found.append(torch.randn(batch, *shape, generator=generator, dtype=torch.float64))
    return tuple(found)
