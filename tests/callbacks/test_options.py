"""The options of every public callback: in the signature, documented, and wrong ones answered by name."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import lightning_prune
from lightning_prune import (
    ChannelPruning,
    FPGMCallback,
    LTPCallback,
    MagnitudeCallback,
    MRTSCallback,
    NetworkSlimmingCallback,
    PruningCallback,
    ScorePruningCallback,
    ST3Callback,
    STRCallback,
    TaylorWeightCallback,
    WeightPruning,
)
from tests.callbacks import toys

PUBLIC = sorted(
    {
        c
        for name in lightning_prune.__all__
        if inspect.isclass(c := getattr(lightning_prune, name)) and issubclass(c, PruningCallback)
    }
    - {PruningCallback},
    key=lambda c: c.__name__,
)
METHODS = [
    LTPCallback, MagnitudeCallback, STRCallback, ST3Callback, TaylorWeightCallback, MRTSCallback,
    NetworkSlimmingCallback, ScorePruningCallback, FPGMCallback,
]  # fmt: skip


def documented(cls: type) -> list[str]:
    """The names in the Args section of the docstring of the class that has the constructor."""
    owner = next(c for c in cls.__mro__ if "__init__" in vars(c))
    text = inspect.cleandoc(owner.__doc__ or "")
    section = re.search(r"^Args:\n((?:    .*\n|\n)*)", f"{text}\n", re.MULTILINE)
    return re.findall(r"^    (\w+): ", section[1], re.MULTILINE) if section else []


def test_all_methods_are_public() -> None:
    assert set(METHODS) < set(PUBLIC)


@pytest.mark.parametrize("cls", PUBLIC)
def test_every_option_is_in_the_signature_and_documented(cls: type) -> None:
    parameters = list(inspect.signature(cls).parameters.values())
    assert all(p.kind is p.POSITIONAL_OR_KEYWORD and p.annotation is not p.empty for p in parameters)
    assert sorted(documented(cls)) == sorted(p.name for p in parameters)


MISSPELT = [
    (LTPCallback, "target_sparsity", "target_sparsty", 0.9),
    (MagnitudeCallback, "schedule", "shedule", "cubic"),
    (MRTSCallback, "target_macs", "target_mac", 0.5),
    (NetworkSlimmingCallback, "sparsify", "sparsfy", 3),
    (FPGMCallback, "min_keep", "minkeep", 0.1),
    (ScorePruningCallback, "scope", "scpe", "layer"),
    (WeightPruning, "min_keep", "minkeep", 0.1),
    (ChannelPruning, "divisor", "divsor", 8),
]


@pytest.mark.parametrize(("cls", "name", "given", "value"), MISSPELT)
def test_a_misspelt_option_names_the_near_one(cls: type, name: str, given: str, value: Any) -> None:
    with pytest.raises(TypeError, match=rf"{cls.__name__} has no option '{given}'. Did you mean .*\b{name}\b"):
        cls(**{given: value})


def test_an_option_that_is_near_none_lists_them_all() -> None:
    with pytest.raises(TypeError, match=r"LTPCallback has no option 'xyz'. It has: target_sparsity, .*warmup"):
        LTPCallback(xyz=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"NetworkSlimmingCallback has no option 'information'"):
        NetworkSlimmingCallback(information="labels")  # type: ignore[call-arg]


@pytest.mark.parametrize("base", [WeightPruning, ChannelPruning])
def test_a_method_without_options_has_those_of_its_family(base: type) -> None:
    made = type("Made", (base,), {})
    assert inspect.signature(made).parameters.keys() == inspect.signature(base).parameters.keys()
    with pytest.raises(TypeError, match=r"Made has no option 'minkeep'. Did you mean min_keep\?"):
        made(minkeep=0.1)


WRONG: list[tuple[type, dict[str, Any], str]] = [
    (LTPCallback, {"target_sparsity": 1.0}, r"target_sparsity=1.0 must be at least 0 and below 1"),
    (LTPCallback, {"target_sparsity": -0.5}, r"target_sparsity=-0.5"),
    (LTPCallback, {"target_compression": 0.5}, r"target_compression=0.5 must be at least 1"),
    (LTPCallback, {"target_sparsity": 0.9, "target_compression": 10}, r"target_compression=10 say the same thing"),
    (LTPCallback, {"lam": -1e-6}, r"lam=-1e-06 must not be negative"),
    (LTPCallback, {"mode": "raw"}, r"mode='raw' must be 'normalized' or 'paper'"),
    (LTPCallback, {"mode": "paper"}, r"mode='paper' needs lam and threshold_lr"),
    (LTPCallback, {"temperature": 0.0}, r"temperature=0.0 must be positive"),
    (LTPCallback, {"min_keep": 1.5}, r"min_keep=1.5 is a share"),
    (LTPCallback, {"trail": [0.5, 1.5]}, r"\[1.5\] are not kept shares"),
    (MagnitudeCallback, {"schedule": "linear"}, r"schedule='linear' must be 'cubic' or 'oneshot'"),
    (MagnitudeCallback, {"target_sparsity": 1.0}, r"target_sparsity=1.0"),
    (MRTSCallback, {"target_macs": 0.5, "delta": 0.1}, "target_macs=0.5, delta=0.1: give one"),
    (MRTSCallback, {"rule": "otsu"}, "rule='otsu'"),
    (MRTSCallback, {"delta": 3.0, "rule": "css"}, "delta=3.0"),
    (MRTSCallback, {"tau": -1}, "tau=-1"),
    (MRTSCallback, {"information": "kl"}, "information='kl'"),
    (MRTSCallback, {"mode": "paper"}, "needs lam"),
    (MRTSCallback, {"travel": -1.0}, "travel=-1.0"),
    (ScorePruningCallback, {"score": "tylor"}, r"score='tylor' is none of \[.*'taylor'.*Did you mean taylor\?"),
    (ScorePruningCallback, {"scope": "local"}, r"scope='local' must be one of \('global', 'layer', 'isomorphic'\)"),
    (ScorePruningCallback, {"score_batches": 0}, "score_batches=0 must be a positive number"),
    *(
        (MRTSCallback, {"noise": noise}, r"noise=.* does not polarise with tau=1.5: from 1/\(2·tau\) = 0.333")
        for noise in (0.34, 1.0)
    ),
    *(
        (cls, options, message)
        for cls in (MRTSCallback, FPGMCallback)
        for options, message in (
            ({"target_macs": 1.5}, "target_macs=1.5"),
            ({"target_macs": 0.5, "target_params": 0.5}, "target_macs=0.5, target_params=0.5: give one"),
            ({"min_keep": 1.0}, "min_keep=1.0"),
            ({"divisor": 0}, "divisor=0"),
            ({"after": "rewind"}, "after='rewind'"),
            ({"surgery": {"divsor": 8}}, r"surgery has \['divsor'\]"),
        )
    ),
]


@pytest.mark.parametrize(("cls", "options", "message"), WRONG, ids=lambda x: str(x)[:40])
def test_a_value_out_of_its_range_is_named(cls: type, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cls(**options)


def test_what_a_method_costs() -> None:
    """Each method of `toys` is a class of 30 lines or fewer."""
    classes = [n for n in ast.parse(Path(toys.__file__).read_text()).body if isinstance(n, ast.ClassDef)]
    lines = {c.name: (c.end_lineno or 0) - c.lineno + 1 for c in classes}
    assert len(lines) >= 6
    assert max(lines.values()) <= 30, lines
