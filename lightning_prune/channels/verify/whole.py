"""A network that is pruned inside a larger model: what it gets there, and whether the whole still computes the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, nn

from lightning_prune.channels.surgery.rewrite import Programs, install, uninstall
from lightning_prune.channels.trace.parts import inputs_of_parts
from lightning_prune.channels.verify.compare import amplifies_rounding, check_plan
from lightning_prune.channels.verify.runs import run
from lightning_prune.channels.verify.tensors import Reader
from lightning_prune.errors import PlanError, SurgeryError
from lightning_prune.plan.plan import PruningPlan
from lightning_prune.support.faults import explain, reraise_ours
from lightning_prune.support.network import find_network

T = TypeVar("T")


@dataclass(frozen=True)
class Whole:
    """The model around a network.

    Attributes:
        model: all of it.
        path: where the network is in it.
        network: that module.
        example_input: what the model takes.
        inside: what the network gets from it.
    """

    model: nn.Module
    path: str
    network: nn.Module
    example_input: Any
    inside: Any

    @classmethod
    def around(cls, path: str, model: nn.Module, example_input: Any) -> Whole:
        """Runs the model once, in eval mode. Raises PlanError if it has no such part, or does not call it."""
        try:
            network = find_network(model, path)
            inside = inputs_of_parts(model, example_input)[path]
        except ValueError as error:
            raise PlanError(str(error)) from error
        except KeyError as error:
            raise PlanError(f"network={path!r} is not called by {type(model).__name__} in eval mode") from error
        return cls(model, path, network, example_input, inside)

    def names(self, given: Mapping[str, T] | None) -> Mapping[str, T] | None:
        """Names as the network has them, if all are given as the model has them."""
        start = f"{self.path}."
        if not given or not all(name.startswith(start) for name in given):
            return given
        return {name.removeprefix(start): value for name, value in given.items()}

    def check(self, plan: PruningPlan, programs: Programs | None, *, exact: bool) -> tuple[str, ...]:
        """Compares the model around the masked and around the sliced network; notes for the user.

        Raises SurgeryError if they are to be equal (`exact`) and are not.
        """

        def rewritten(model: nn.Module, read: Reader, batch: Any) -> list[Tensor]:
            install(self.network, programs or {})
            try:
                return run(model, read, batch)
            finally:
                uninstall(self.network)

        around, name = plan.above(self.path), f"{type(self.model).__name__} around {self.path!r}"
        try:
            proof = check_plan(self.model, around, self.example_input, rewritten if programs else run)
        except Exception as error:
            reraise_ours(error)
            raise SurgeryError(f"{name} does not run the compact network: {explain(error)}. It is unchanged") from error
        if proof.equal and proof.vacuous:
            return (f"{name} runs, and gives the same without the removed channels as with them: a detector that finds "
                    "no box, say. So no more is proven of it; the network itself was compared",)  # fmt: skip
        if proof.equal or not exact:
            return ()
        if amplifies_rounding(self.model, around, self.example_input):
            return (f"{name} was run and not compared: what it picks or sorts hangs on the last digit",)
        raise SurgeryError(f"{name} computes something else with the compact network: {proof}. It is unchanged")
