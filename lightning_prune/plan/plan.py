"""`PruningPlan`: a pruned architecture as data. Which channels of which tensors are left, as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lightning_prune.errors import PlanError
from lightning_prune.plan import codec
from lightning_prune.plan.cut import Change, Cut
from lightning_prune.plan.factor import Factor, pull_back

_SURGERY: dict[str, Callable[..., nn.Module]] = {}


def register_surgery(apply: Callable[..., nn.Module], undo: Callable[..., nn.Module]) -> None:
    """Says how plans are applied, (plan, model, optimizers, averaged), and undone, (plan, model).

    `lightning_prune.channels.surgery` calls it when it is imported: it builds on plans, so they cannot import it.
    """
    _SURGERY.update(apply=apply, undo=undo)


@dataclass(frozen=True)
class PruningPlan:
    """Everything needed to turn a dense model into the compact one, without tracing anything again.

    Attributes:
        cuts: {tensor name in the state dict: what is left of it}.
        attributes: {module path: {attribute: change}}.
        form: "eager" if the model's own code runs the compact model, "graph" if a rewritten graph has to.
        inputs: (shape, dtype) of the tensors that the model was traced with; used by the form "graph".
        settings: how the channels were tied ("groups", "attention"), for the form "graph" and for the record.
        empty: paths of the modules that keep no channel on one side, as their branch was removed; stand-ins run them
            where PyTorch cannot. No other module may lose all of its channels.
        factors: {path of a linear layer or convolution: its two parts}; they come after the cuts.
        denominators: {path of a norm or an attention: the number of channels that it goes on to divide by}, that of
            the dense model, although fewer are left: channels of the statistics, dims of a head in the default scale.
    """

    cuts: dict[str, Cut]
    attributes: dict[str, dict[str, Change]] = field(default_factory=dict)
    form: str = "eager"
    inputs: tuple[tuple[tuple[int, ...], str], ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    empty: tuple[str, ...] = ()
    factors: dict[str, Factor] = field(default_factory=dict)
    denominators: dict[str, int] = field(default_factory=dict)
    stages: tuple[PruningPlan, ...] = ()

    def to_json(self, path: str | Path | None = None) -> str:
        """Returns the plan as JSON text, and writes it to `path` if given. Equal index lists are stored once."""
        text = json.dumps(codec.to_data(vars(self)))
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
        return cls.from_data(codec.parse(text))

    @classmethod
    def from_data(cls, data: Any) -> PruningPlan:
        """Reads a plan from what its JSON text holds; raises as `from_json`."""
        plan = cls(**codec.from_data(data))
        stages = tuple(cls(**stage) for stage in codec.stages_of(data))
        if stages and not reduce(cls.then, stages).same_cut(plan):
            raise PlanError("the stages of the plan, one after the other, do not leave what the plan leaves")
        return replace(plan, stages=stages)

    def apply(
        self, model: nn.Module, *, optimizers: Iterable[Optimizer] = (), averaged: Iterable[nn.Module] = ()
    ) -> nn.Module:
        """Makes `model` compact, in place: Parameter objects stay, their data is sliced.

        A factorised layer stays the same object too, with two layers below it that hold the truncated singular value
        decomposition of its weight (`FactoredLayer`). Its Parameter becomes the first part's weight; the second part's
        is new, and joins the optimizers right behind it. What optimizers keep for the two begins anew.

        The module remembers the plan, in one with those that were applied before: see `lightning_prune.plan.record`.

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
        return _SURGERY["apply"](self, model, optimizers, averaged)

    def undo(self, model: nn.Module) -> nn.Module:
        """Gives a compact model its dense shapes back, in place, so that a dense checkpoint can be loaded into it.

        What was kept goes where it was; what was removed is zero (a running variance: one), so the result computes what
        the model with masked channels computes. Buffers outside the state dict are as they were before. Parameter
        objects stay; optimizer state keeps its size: load it, or make a new optimizer. The two parts of a factorised
        layer are multiplied: shape and function come back, not the bits of what was there before.

        Args:
            model: a model that this plan was applied to, or a module that holds one. Where several plans were applied,
                it takes all of them in one: ``lightning_prune.plan_of(model).undo(model)``.

        Returns:
            The same object.

        Raises:
            PlanError: the model is not what this plan leaves; nothing was changed.
        """
        return _SURGERY["undo"](self, model)

    def same_cut(self, other: PruningPlan) -> bool:
        """Whether both leave the same model; what they were traced with may differ."""
        mine, theirs = ((p.cuts, p.attributes, p.form, p.empty, p.factors, p.denominators) for p in (self, other))
        return mine == theirs

    def below(self, path: str) -> PruningPlan:
        """What this plan does to the submodule at `path`, by the names that the submodule itself uses."""
        start = f"{path}."
        cuts = {name.removeprefix(start): cut for name, cut in self.cuts.items() if name.startswith(start)}
        modules = (*self.attributes, *self.empty, *self.factors, *self.denominators)
        inside = {m: f"{m}.".removeprefix(start).removesuffix(".") for m in modules if f"{m}.".startswith(start)}
        attributes = {inside[m]: changes for m, changes in self.attributes.items() if m in inside}
        empty = tuple(inside[m] for m in self.empty if m in inside)
        factors = {inside[m]: factor for m, factor in self.factors.items() if m in inside}
        counted = {inside[m]: count for m, count in self.denominators.items() if m in inside}
        stages = tuple(stage.below(path) for stage in self.stages)
        return PruningPlan(cuts, attributes, self.form, self.inputs, self.settings, empty, factors, counted, stages)

    def above(self, path: str) -> PruningPlan:
        """This plan by the names of a model that has the planned one as its submodule at `path`."""
        cuts = {f"{path}.{name}": cut for name, cut in self.cuts.items()}
        modules = (*self.attributes, *self.empty, *self.factors, *self.denominators)
        names = {module: f"{path}.{module}".removesuffix(".") for module in modules}
        attributes = {names[module]: changes for module, changes in self.attributes.items()}
        factors = {names[module]: factor for module, factor in self.factors.items()}
        empty = tuple(names[module] for module in self.empty)
        counted = {names[module]: count for module, count in self.denominators.items()}
        stages = tuple(stage.above(path) for stage in self.stages)
        return replace(
            self, cuts=cuts, attributes=attributes, empty=empty, factors=factors, denominators=counted, stages=stages
        )

    def then(self, second: PruningPlan) -> PruningPlan:
        """Returns the one plan that does what `self` and then `second` do.

        Raises:
            PlanError: `second` was not made from the model that `self` leaves.
        """
        cuts = dict(self.cuts)
        later, changes_after, factors = pull_back(self.factors, second.cuts, second.attributes)
        for name, cut in later.items():
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
        for module, changes in changes_after.items():
            for name, change in changes.items():
                known = attributes.setdefault(module, {}).get(name)
                attributes[module][name] = change if known is None else Change(known.before, change.after)
        form = "graph" if "graph" in (self.form, second.form) else "eager"
        empty = tuple(sorted({*self.empty, *second.empty}))
        if empty and form == "graph":
            raise PlanError(
                f"no rewritten graph runs a model without the branches of {empty[0]}: one of the plans is one"
            )
        if any(f"{part}.".startswith(f"{path}.") for part in second.empty for path in factors):
            raise PlanError(f"the second plan removes all of a factorised layer, one of {', '.join(second.empty[:5])}")
        settings = {**self.settings, **second.settings}
        if self.denominators:  # what the first plan cut, a graph of both has to let go
            settings |= {name: self.settings[name] for name in ("norms",) if name in self.settings}
        factors |= second.factors
        check_factors(factors, form)
        counted = {**second.denominators, **self.denominators}
        stages = (*(self.stages or (self,)), *(second.stages or (second,)))
        return PruningPlan(
            cuts, attributes, form, self.inputs or second.inputs, settings, empty, factors, counted,
            stages if form == "graph" and len(stages) <= codec.MOST_STAGES else (),
        )  # fmt: skip

    def __deepcopy__(self, memo: dict[int, Any]) -> PruningPlan:
        return self  # a value: averaged copies of a module need no copy of its long lists

    def __str__(self) -> str:
        before = sum(math.prod(cut.shape) for cut in self.cuts.values())
        after = sum(math.prod(cut.new_shape) for cut in self.cuts.values())
        factorised = f", {len(self.factors)} layers factorised" if self.factors else ""
        return (
            f"PruningPlan({len(self.cuts)} tensors cut, {before} -> {after} elements in them{factorised}, "
            f"form={self.form!r})"
        )


def check_factors(factors: Mapping[str, Factor], form: str) -> None:
    """Raises PlanError if a factorised layer would not be smaller, or lies in a rewritten graph, or in another one."""
    for path, factor in factors.items():
        factor.check(path)
        above = next((other for other in factors if path.startswith(f"{other}.")), None)
        if above is not None:
            raise PlanError(f"the plan factorises {path:.200}, a part of {above:.200}, which it factorises already")
    if factors and form == "graph":
        raise PlanError(
            "no rewritten graph runs a factorised layer, as it reads the layer's weight: cut channels with form='eager'"
        )
