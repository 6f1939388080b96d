"""Noise is left out while a command runs, and heard everywhere else."""

from __future__ import annotations

import logging
import warnings

import pytest

from lightning_prune.cli.quiet import quiet

NOISE = "isinstance(treespec, LeafSpec) is deprecated, use something else."
TIP = "💡 Tip: For seamless cloud logging, try installing [something]."


def noise(caplog: pytest.LogCaptureFixture) -> tuple[list[str], list[str]]:
    """What is heard of two advertisements and two warnings."""
    log = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    caplog.clear()
    with warnings.catch_warnings(record=True) as heard, caplog.at_level(logging.INFO):
        log.addHandler(caplog.handler)
        warnings.warn(f"`{NOISE.removeprefix('`')}", FutureWarning, stacklevel=1)
        warnings.warn("the training has diverged", UserWarning, stacklevel=1)
        log.warning(TIP)
        log.warning("pruned 10 weights")
        log.removeHandler(caplog.handler)
    return [str(w.message) for w in heard], list(dict.fromkeys(caplog.messages))


def test_only_noise_is_left_out_and_only_within(caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        everything = noise(caplog)
        with quiet():
            within = noise(caplog)
        with quiet("the training"):
            less = noise(caplog)
        after = noise(caplog)
    assert len(everything[0]) == len(everything[1]) == 2
    assert within == (["the training has diverged"], ["pruned 10 weights"])
    assert less == ([], ["pruned 10 weights"])
    assert after == everything


def test_noise_is_heard_again_after_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match="mine"), quiet():
        raise ValueError("mine")
    assert TIP in noise(caplog)[1]
