"""`reconstruct`: weights by least squares after a removal, so that layers give what they gave in the dense network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from lightning_prune.errors import CalibrationError
from lightning_prune.functional.least_squares import Form, errors, least_squares
from lightning_prune.plan.plan import PruningPlan
from lightning_prune.scoring.contributions import Reader, draw_places, patches, reads_plainly
from lightning_prune.support.modes import Arguments, mode
from lightning_prune.support.watch import watching


def check_form(form: str | None) -> None:
    """Raise ValueError for an unknown form; None is no reconstruction."""
    if form is not None and form not in get_args(Form):
        raise ValueError(f"reconstruct={form!r} must be one of {get_args(Form)}, or None.")


def check_calls(calls: Sequence[Any]) -> None:
    """Raise CalibrationError where there is nothing to refit on."""
    if not calls:
        raise CalibrationError("reconstruct needs calibration batches and got none: give batches=...")


@dataclass(frozen=True)
class Refit:
    """What `reconstruct` did to a layer.

    Attributes:
        layer: its path.
        before, after: mean squared error of its outputs by those of the dense network, as a share of their variance;
            on the places that the refit saw.
    """

    layer: str
    before: float
    after: float


@torch.no_grad()
def reconstruct(
    network: nn.Module,
    dense: nn.Module,
    plan: PruningPlan,
    calls: Sequence[Arguments],
    *,
    form: Form = "weights",
    places: int = 2000,
    ridge: float = 1e-3,
) -> list[Refit]:
    """Refits the layers that read removed channels, in place, one after the other in the order of their calls.

    A layer gets the weights and the bias, if it has one, of least squared error by the outputs that the same layer had
    in the dense network, given the inputs that it has now (He et al., ICCV 2017, arXiv 1707.06168: what was refitted
    before is seen). Both networks are in eval mode meanwhile.

    Args:
        network: the compact network.
        dense: the network before the removal, with its weights.
        plan: of that removal.
        calls: what the networks are called with, see `calls_of`.
        form: "weights" refits all of a layer's weights, "scale" a factor for each input channel (ThiNet, arXiv
            1707.06342).
        places: outputs of a layer that are looked at, drawn at random; at least twice as many as weights of an output,
            so that the refit does not just learn them by heart.
        ridge: how much a change of the weights counts beside the errors, as a share of the mean square of the inputs.

    Returns:
        What was done, a layer each. Layers that are called several times in a run, that work in groups, or are
        transposed stay as they are, and are not listed; in a rewritten graph all do.

    Raises:
        CalibrationError: there are no calls.
    """
    check_form(form)
    check_calls(calls)
    readers = _readers(network, plan) if plan.form == "eager" else {}
    with mode(network, False), mode(dense, False):
        order = _called_once(network, readers, calls[0])
        return [_refit(path, network, dense, calls, readers[path], form, places, ridge) for path in order]


def _readers(network: nn.Module, plan: PruningPlan) -> dict[str, Tensor | None]:
    """{path of a plain layer that lost inputs: the outputs that it kept, None for all}."""
    found: dict[str, Tensor | None] = {}
    for path, module in network.named_modules():
        cut = plan.cuts.get(f"{path}.weight")
        if cut is not None and 1 in cut.kept and reads_plainly(module) and module.weight.numel():
            found[path] = torch.tensor(cut.kept[0]) if 0 in cut.kept else None
    return found


def calls_of(network: nn.Module, run: Callable[[Any], Any], batches: Iterable[Any]) -> list[Arguments]:
    """What a network is called with when what is around it runs on batches."""
    found: list[Arguments] = []

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(Arguments(args, kwargs))

    handle = network.register_forward_pre_hook(note, with_kwargs=True)
    try:
        for batch in batches:
            run(batch)
    finally:
        handle.remove()
    return found


def told(refits: Sequence[Refit]) -> str:
    """Refits in one line."""
    if not refits:
        return "reconstruct refitted nothing: no plain layer of the network's own code that is called once lost inputs"
    before, after = (max(getattr(refit, side) for refit in refits) for side in ("before", "after"))
    return f"reconstruct refitted {len(refits)} layers: the largest error of one went from {before:.3g} to {after:.3g}"


def _called_once(network: nn.Module, paths: Iterable[str], call: Arguments) -> list[str]:
    calls: list[str] = []
    with watching({path: (network.get_submodule(path), "input") for path in paths}, lambda n, x: calls.append(n)):
        network(*call.args, **call.kwargs)
    return [path for path in calls if calls.count(path) == 1]


class _Reached(Exception):
    """The layer has been called: the rest of the network need not run."""


@contextmanager
def _until(layer: nn.Module, side: Literal["input", "output"]) -> Iterator[list[Tensor]]:
    """Inside, a run of the network ends at a layer, and what enters or leaves it is in the list."""
    seen: list[Tensor] = []

    def note(_: str, x: Tensor) -> None:
        seen.append(x)
        raise _Reached

    try:
        with watching({"": (layer, side)}, note):
            yield seen
    except _Reached:
        pass


def _refit(
    path: str,
    network: nn.Module,
    dense: nn.Module,
    calls: Sequence[Arguments],
    kept: Tensor | None,
    form: Form,
    places: int,
    ridge: float,
) -> Refit:
    layer = cast(Reader, network.get_submodule(path))
    share = -(-max(places, 2 * layer.weight[0].numel()) // len(calls))
    inputs, outputs = [], []
    for i, call in enumerate(calls):
        with _until(layer, "input") as seen:
            network(*call.args, **call.kwargs)
        x = _samples_first(layer, seen[0])
        at = draw_places(layer, x.shape, share, seed=i)
        inputs.append(patches(layer, x, at).double())
        with _until(dense.get_submodule(path), "output") as seen:
            dense(*call.args, **call.kwargs)
        y = _samples_first(layer, seen[0])
        y = y if kept is None else y[:, kept.to(y.device)]
        outputs.append(y.transpose(0, 1).flatten(1).T[at.to(y.device)].double())
    x, y = torch.cat(inputs), torch.cat(outputs)
    old = layer.weight.detach().double().view(*layer.weight.shape[:2], -1)
    bias = None if layer.bias is None else layer.bias.detach().double()
    new, shift = least_squares(x, y, old, bias, form, ridge)
    spread = (y - y.mean(0)).square().mean().clamp_min(torch.finfo(y.dtype).tiny)
    before, after = (float(errors(x, y, w, b).square().mean() / spread) for w, b in ((old, bias), (new, shift)))
    layer.weight.copy_(new.view(layer.weight.shape))
    if layer.bias is not None and shift is not None:
        layer.bias.copy_(shift)
    return Refit(path, before, after)


def _samples_first(layer: Reader, x: Tensor) -> Tensor:
    if isinstance(layer, nn.Linear):
        return x.movedim(-1, min(1, x.ndim - 1)) if x.ndim > 1 else x.unsqueeze(0)
    return x if x.ndim == len(layer.kernel_size) + 2 else x.unsqueeze(0)
