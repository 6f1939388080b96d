"""Noise is left out while a command runs, and heard everywhere else."""

from __future__ import annotations

import io
import logging
import warnings

import pytest

from lightning_prune.cli.quiet import quiet

NOISE = "isinstance(treespec, LeafSpec) is deprecated, use something else."
TIP = "💡 Tip: For seamless cloud logging, try installing [something]."


def noise() -> tuple[list[str], list[str]]:
    """What is heard of two warnings and two lines of a log."""
    log, lines = logging.getLogger("lightning.pytorch.utilities.rank_zero"), io.StringIO()
    handler = logging.StreamHandler(lines)
    log.addHandler(handler)
    try:
        with warnings.catch_warnings(record=True) as heard:
            warnings.warn(NOISE, FutureWarning, stacklevel=1)
            warnings.warn("the training has diverged", UserWarning, stacklevel=1)
            log.critical(TIP)
            log.critical("pruned 10 weights")
    finally:
        log.removeHandler(handler)
    return [str(w.message) for w in heard], lines.getvalue().splitlines()


def test_only_noise_is_left_out_and_only_within() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        everything = noise()
        with quiet():
            within = noise()
        with quiet("the training"):
            less = noise()
        after = noise()
    assert len(everything[0]) == len(everything[1]) == 2
    assert within == (["the training has diverged"], ["pruned 10 weights"])
    assert less == ([], ["pruned 10 weights"])
    assert after == everything


def test_noise_is_heard_again_after_a_failure() -> None:
    with pytest.raises(ValueError, match="mine"), quiet():
        raise ValueError("mine")
    assert TIP in noise()[1]
