"""Mutated files: 2,000 of the cases of ``tests.benchmarks.fuzz_files``, and that it finds what it looks for."""

from __future__ import annotations

import mmap
import os
import pickle
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.benchmarks.fuzz_files import OUTCOMES, Tally, run, table
from tests.benchmarks.fuzzing import judge as judging
from tests.benchmarks.fuzzing.judge import Watch, judge
from tests.benchmarks.fuzzing.mutate import MUTATIONS, OF_FOLDERS, Case
from tests.benchmarks.fuzzing.seeds import Seed


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="Linux alone tells a case's peak memory")
def test_two_thousand_mutated_files() -> None:
    tally = run(0, 2000)
    assert tally.findings == []
    outcomes: Counter[str] = Counter()
    for (_, _, outcome), count in tally.counts.items():
        outcomes[outcome] += count
    assert outcomes.total() == 2000
    assert set(outcomes) == set(OUTCOMES)
    assert {mutation for _, mutation, _ in tally.counts} == {*MUTATIONS, *OF_FOLDERS}
    assert outcomes["refused"] > 1500
    text = table(tally, 0, 2000)
    assert "2,000 cases,\n**0 findings**" in text
    assert all(f"| {mutation} |" in text for mutation in MUTATIONS)


SEED = Seed("sparse", {"model.safetensors": b"x" * 100}, False, {"a": torch.zeros(3)})
hog: list[Any] = []


def opens(path: Path) -> Any:
    return Path("/etc/hostname").read_text()


def takes(path: Path) -> Any:
    fresh = mmap.mmap(-1, 2**26)  # what the allocator takes may have been the process's before
    fresh.write(b"\1" * 2**26)
    hog.append(fresh)
    return {}


def unpickles(path: Path) -> Any:
    return pickle.loads(pickle.dumps(Path))


def crashes(path: Path) -> Any:
    raise KeyError("shape")


def another(path: Path) -> Any:
    return {"a": torch.ones(3)}


@pytest.fixture(scope="module")
def watch(tmp_path_factory: pytest.TempPathFactory) -> Watch:
    return Watch(tmp_path_factory.getbasetemp())


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="Linux alone tells a case's peak memory")
@pytest.mark.parametrize(
    ("wrong", "finding"),
    [
        (opens, "opened /etc/hostname"),
        (takes, "bytes for a file of 100"),
        (unpickles, "pickle.find_class"),
        (crashes, "KeyError: 'shape'"),
        (another, "another model under the old hash"),
        (lambda path: os.system("true"), "os.system"),
    ],
)
def test_the_judge_finds(
    wrong: Any, finding: str, watch: Watch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judging, "load_pruned", lambda path, model: wrong(path))
    monkeypatch.setattr(judging, "pruned_state_dict", lambda path: {"a": torch.zeros(3)})
    monkeypatch.setattr(judging, "pruned_info", lambda path: {})
    outcome = judge(Case(SEED, SEED.files), tmp_path / "x", watch)
    hog.clear()
    assert outcome.startswith("FINDING")
    assert finding in outcome


def test_the_end_of_a_process_is_a_finding() -> None:
    tally = Tally()
    assert tally.add('7\n[7, "sparse", "longer", "refused"]\n8\n', -11) == 8
    assert tally.findings == ["case 8: FINDING: the process ended with code -11"]


def test_cases_are_the_same_each_time() -> None:
    seed = Seed("folder", {"config.json": b'{"a": [1, 2]}', "model.safetensors": b"y" * 50}, True, {})
    only_bytes = {name: MUTATIONS[name] for name in ("cut off", "bits flipped", "bytes moved")}
    for name, change in only_bytes.items():
        made = []
        for _ in range(2):
            case = Case(seed, dict(seed.files))
            change(random.Random(name), case)
            made.append(case.files)
        assert made[0] == made[1] != seed.files
