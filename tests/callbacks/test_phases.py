"""Where warm-up, sparsify and finetune lie: durations in epochs, shares and steps, and those that cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lightning_prune.callbacks.phases import Duration, Phases, Training, resolve_phases
from lightning_prune.errors import PhaseError
from tests.callbacks.methods import run
from tests.toy import Toy, ours_left_on

PER_EPOCH, TOTAL = 10, 100
PHASES: list[tuple[tuple[Duration, Duration, Duration | None], tuple[int, int]]] = [
    ((0, 0.6, None), (0, 60)),
    ((0, 0.6, 0.4), (0, 60)),
    ((2, 5, None), (20, 70)),
    ((2, 5, 3), (20, 70)),
    ((0.04, 0.5, None), (4, 54)),  # too short for an epoch: batches
    ((0.17, 0.5, None), (20, 70)),  # near an epoch boundary: there
    (("5 steps", "30 steps", None), (10, 70)),  # two batches a step
    ((0, 1.0, None), (0, 100)),
    ((0, 0, None), (0, 0)),
]


@pytest.mark.parametrize(("durations", "expected"), PHASES)
def test_durations_resolve_to_batches(durations: Any, expected: tuple[int, int]) -> None:
    phases = resolve_phases(*durations, Training(10, PER_EPOCH, TOTAL, accumulate=2))
    assert (phases.begin, phases.prune) == expected


def test_phase_and_progress_are_functions_of_the_batch_count() -> None:
    phases = Phases(begin=10, prune=30, total=50)
    assert [phases.at(n) for n in (0, 9, 10, 29, 30, 49)] == ["warmup"] * 2 + ["sparsify"] * 2 + ["finetune"] * 2
    assert [phases.progress(n) for n in (0, 10, 20, 30, 45)] == [0, 0, 0.5, 1, 1]


WRONG: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"warmup": 4, "sparsify": 4}, {}, r"warmup=4 \+ sparsify=4 take 64 batches, but the training has 48"),
    ({"warmup": 0, "sparsify": 2, "finetune": 9}, {}, r"finetune=9 take 88 batches"),
    ({"sparsify": "5 parsecs"}, {}, r"sparsify='5 parsecs': a duration in words looks like '300 steps'"),
    ({"warmup": -1}, {}, r"warmup=-1 must not be negative"),
    ({"sparsify": 1.5}, {}, r"sparsify=1.5: a float is a share"),
    ({"sparsify": 0.6}, {"max_epochs": -1}, r"no known length \(max_epochs=-1"),
]


@pytest.mark.parametrize("case", range(len(WRONG)))
@pytest.mark.parametrize("name", ["ltp", "mrts"])
def test_durations_that_cannot_be(name: str, case: int, tmp_path: Path) -> None:
    options, trainer_options, message = WRONG[case]
    module = Toy()
    with pytest.raises(PhaseError, match=message):
        run(tmp_path, name, module, options=options, **trainer_options)
    assert not ours_left_on(module)
