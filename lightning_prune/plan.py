"""`PruningPlan`: a pruned architecture as data. Which channels of which tensors are left, as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_prune.errors import PlanError

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

FORMAT = "lightning_prune.plan"
VERSION = 1


@dataclass(frozen=True)
class Cut:
    """What is left of one tensor.

    Attributes:
        shape: the tensor's shape before.
        kept: {dim: kept indices, increasing}; dims that stay whole are absent.
    """

    shape: tuple[int, ...]
    kept: dict[int, tuple[int, ...]]

    @property
    def new_shape(self) -> tuple[int, ...]:
        """The tensor's shape after."""
        return tuple(len(self.kept[d]) if d in self.kept else size for d, size in enumerate(self.shape))


@dataclass(frozen=True)
class Change:
    """An attribute of a module that counts channels: its value before and after (ints, or sequences of ints)."""

    before: Any
    after: Any


@dataclass(frozen=True)
class PruningPlan:
    """Everything needed to turn a dense model into the compact one, without tracing anything again.

    Attributes:
        cuts: {tensor name in the state dict: what is left of it}.
        attributes: {module path: {attribute: change}}.
        form: "eager" if the model's own code runs the compact model, "graph" if a rewritten graph has to.
        inputs: (shape, dtype) of the tensors that the model was traced with; used by the form "graph".
        settings: how the channels were tied ("groups", "attention"), for the form "graph" and for the record.
    """

    cuts: dict[str, Cut]
    attributes: dict[str, dict[str, Change]] = field(default_factory=dict)
    form: str = "eager"
    inputs: tuple[tuple[tuple[int, ...], str], ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)

    def to_json(self, path: str | Path | None = None) -> str:
        """Returns the plan as JSON text, and writes it to `path` if given. Equal index lists are stored once."""
        lists: dict[tuple[int, ...], int] = {}
        tensors = {
            name: {
                "shape": list(cut.shape),
                "kept": {str(d): lists.setdefault(k, len(lists)) for d, k in cut.kept.items()},
            }
            for name, cut in self.cuts.items()
        }
        text = json.dumps(
            {
                "format": FORMAT,
                "version": VERSION,
                "form": self.form,
                "inputs": [[list(shape), dtype] for shape, dtype in self.inputs],
                "settings": self.settings,
                "attributes": {
                    module: {name: [change.before, change.after] for name, change in changes.items()}
                    for module, changes in self.attributes.items()
                },
                "index_lists": [list(indices) for indices in lists],
                "tensors": tensors,
            }
        )
        if path is not None:
            Path(path).write_text(text)
        return text

    @classmethod
    def from_json(cls, source: str | Path) -> PruningPlan:
        """Reads a plan from JSON text, or from a file.

        Raises:
            PlanError: the source is not a plan, or of a version that this library does not know.
        """
        text = source.read_text() if isinstance(source, Path) else source
        if not text.lstrip().startswith("{"):
            try:
                text = Path(text).read_text()
            except OSError as error:
                raise PlanError(f"{source!r} is neither JSON text nor a readable file: {error}") from error
        try:
            data = json.loads(text)
            if data.get("format") != FORMAT or data.get("version") != VERSION:
                found = {k: data.get(k) for k in ("format", "version")}
                raise PlanError(f"expected a plan with format={FORMAT!r} and version={VERSION}, found {found}")
            lists = [tuple(indices) for indices in data["index_lists"]]
            return cls(
                cuts={
                    name: Cut(tuple(t["shape"]), {int(d): lists[i] for d, i in t["kept"].items()})
                    for name, t in data["tensors"].items()
                },
                attributes={
                    module: {name: Change(_frozen(b), _frozen(a)) for name, (b, a) in changes.items()}
                    for module, changes in data["attributes"].items()
                },
                form=data["form"],
                inputs=tuple((tuple(shape), dtype) for shape, dtype in data["inputs"]),
                settings=data["settings"],
            )
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise PlanError(f"this is not a pruning plan: {type(error).__name__}: {error}") from error

    def apply(
        self, model: nn.Module, *, optimizers: Iterable[Optimizer] = (), averaged: Iterable[nn.Module] = ()
    ) -> nn.Module:
        """Makes `model` compact, in place: Parameter objects stay, their data is sliced.

        Args:
            model: a dense model of the architecture that the plan was made from, or a module that holds exactly one
                (a LightningModule, an `AveragedModel`).
            optimizers: optimizers over the model's parameters; their state is sliced with it.
            averaged: averaged copies of the model; they get the same plan.

        Returns:
            The same object.

        Raises:
            PlanError: the plan does not fit; nothing was changed.
        """
        from lightning_prune.channels.surgery import apply_plan

        return apply_plan(self, model, optimizers, averaged)

    def then(self, second: PruningPlan) -> PruningPlan:
        """Returns the one plan that does what `self` and then `second` do.

        Raises:
            PlanError: `second` was not made from the model that `self` leaves.
        """
        cuts = dict(self.cuts)
        for name, cut in second.cuts.items():
            first = self.cuts.get(name)
            if first is None:
                cuts[name] = cut
                continue
            if first.new_shape != cut.shape:
                raise PlanError(
                    f"plans do not follow each other: {name} is {first.new_shape} after the first plan, "
                    f"the second expects {cut.shape}"
                )
            kept = {
                d: tuple(first.kept[d][i] for i in cut.kept[d]) if d in first.kept and d in cut.kept
                else cut.kept.get(d, first.kept.get(d, ()))
                for d in sorted({*first.kept, *cut.kept})
            }  # fmt: skip
            cuts[name] = Cut(first.shape, kept)
        attributes = {module: dict(changes) for module, changes in self.attributes.items()}
        for module, changes in second.attributes.items():
            for name, change in changes.items():
                known = attributes.setdefault(module, {}).get(name)
                attributes[module][name] = change if known is None else Change(known.before, change.after)
        form = "graph" if "graph" in (self.form, second.form) else "eager"
        return PruningPlan(cuts, attributes, form, self.inputs or second.inputs, {**self.settings, **second.settings})

    def __str__(self) -> str:
        before = sum(_size(cut.shape) for cut in self.cuts.values())
        after = sum(_size(cut.new_shape) for cut in self.cuts.values())
        return f"PruningPlan({len(self.cuts)} tensors cut, {before} -> {after} elements in them, form={self.form!r})"


def _size(shape: Iterable[int]) -> int:
    size = 1
    for s in shape:
        size *= s
    return size


def _frozen(value: Any) -> Any:
    """Lists from JSON become tuples, so that plans compare equal after a round trip."""
    if isinstance(value, list):
        return tuple(_frozen(v) for v in value)
    return {k: _frozen(v) for k, v in value.items()} if isinstance(value, Mapping) else value
