"""Constructors whose options an editor can see: written out in full, handed on by name, misspelt ones answered."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lightning_prune.support.near import did_you_mean

WITHOUT_JUMP = ("fading", "held")  # gates of `LTPCallback` without a jump
_SURGERY = {"form", "groups", "attention", "allow_inexact", "norms"}


def check_channel_options(min_keep: float, divisor: int, after: str, surgery: Mapping[str, Any] | None) -> None:
    """Raise ValueError for options of `ChannelPruning` that are out of their range."""
    if not 0 <= min_keep < 1:
        raise ValueError(f"min_keep={min_keep} is a share of each layer's channels, in [0, 1).")
    if divisor < 1:
        raise ValueError(f"divisor={divisor} must be a positive number, such as 8.")
    if after not in ("finetune", "retrain"):
        raise ValueError(f"after={after!r} must be 'finetune' or 'retrain'.")
    unknown = sorted(set(surgery or {}) - _SURGERY)
    if unknown:
        raise ValueError(f"surgery has {unknown}: expected some of {sorted(_SURGERY)}, as for prune_channels.")


def check_ltp_options(
    targeted: bool,
    lam: float | None,
    mode: str,
    temperature: float,
    temperature_start: float,
    threshold_lr: float | None,
    gate: str | None,
) -> None:
    """Raise ValueError for options of `LTPCallback` that are out of their range, or do not go together."""
    if lam is not None and lam < 0:
        raise ValueError(f"lam={lam} must not be negative: it is the price of keeping weights.")
    if mode not in ("normalized", "paper"):
        raise ValueError(f"mode={mode!r} must be 'normalized' or 'paper'.")
    if not 0 < temperature <= temperature_start and mode != "paper":
        raise ValueError(
            f"temperature={temperature} must be positive and at most temperature_start={temperature_start}."
        )
    if mode == "normalized" and lam is not None and targeted:
        raise ValueError(
            f"lam={lam} and a target decide the same thing: the price follows from the target. Give one of them."
        )
    if mode == "paper" and (threshold_lr is None or lam is None):
        raise ValueError(
            f"mode='paper' needs lam and threshold_lr (got {lam} and {threshold_lr}): the paper's raw λ and η_τ "
            "depend on the network; 1e-6 and 1e-5·lr are a start for a CIFAR ResNet-20."
        )
    steered = targeted and mode == "normalized"
    if gate not in (None, "sigmoid", *WITHOUT_JUMP) or (gate in WITHOUT_JUMP and not steered):
        raise ValueError(
            f"gate={gate!r} must be None, 'sigmoid' or, with a target in mode 'normalized', 'fading' or 'held'."
        )


def options_of(base: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a constructor's ``locals()`` that its base class takes: the arguments of ``super().__init__``."""
    names = list(inspect.signature(base.__init__).parameters)[1:]  # type: ignore[misc]
    return {name: given[name] for name in names if name in given}


def changed(owner: Any, kind: type, names: Sequence[str]) -> str:
    """``name=value`` of those options of its constructor that an object of ``kind`` has not left at their defaults."""
    parameters = inspect.signature(kind.__init__).parameters  # type: ignore[misc]
    values = {name: getattr(owner, name) for name in names}
    return ", ".join(f"{name}={value}" for name, value in values.items() if value != parameters[name].default)


def naming_near_options(init: Callable[..., None]) -> Callable[..., None]:
    """The same constructor, whose error for an option that it does not have names those that are near."""
    parameters = inspect.signature(init).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return init
    known = [p.name for p in parameters][1:]

    @functools.wraps(init)
    def checked(self: Any, *args: Any, **options: Any) -> None:
        for name in options:
            if name not in known:
                hint = did_you_mean(name, known) or f"It has: {', '.join(known)}."
                raise TypeError(f"{type(self).__name__} has no option {name!r}. {hint}")
        init(self, *args, **options)

    return checked
