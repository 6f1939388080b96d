"""The trail: ordinary checkpoints at the wanted kept shares, an index, and picking from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch

from lightning_prune import LTPCallback, Trail, sparsity_report
from tests.toy import Toy, loaders, trainer, zeros

N = 8 * 9 + 16 * 8 * 9 + 16 * 4


def run(path: Path, values: Any, **options: Any) -> Any:
    callback = LTPCallback(target_sparsity=0.9, sparsify=0.7, trail=values, trail_dir=str(path / "trail"), **options)
    module = Toy()
    trainer(path, [callback], max_epochs=20).fit(module, **loaders())
    return module, Trail(path / "trail")


def test_checkpoints_at_each_crossing_with_their_numbers(tmp_path: Path) -> None:
    _, trail = run(tmp_path, [0.7, 0.3, 0.1])
    assert sorted((v for e in trail.entries for v in e.crossed), reverse=True) == [0.7, 0.3, 0.1]
    for entry in trail.entries:
        assert entry.kept <= entry.crossed[-1] + 1 / N
        assert entry.sparsity == pytest.approx(1 - entry.kept)
        assert entry.metric == "val_acc"
        assert 0 <= entry.score <= 1
        plain = Toy()
        plain.load_state_dict(torch.load(entry.path, weights_only=True)["state_dict"], strict=True)
        pruned = entry.prune(Toy())
        assert sparsity_report(pruned).zeros == round(entry.sparsity * N)
    for row in json.loads((tmp_path / "trail" / "index.json").read_text()):
        assert set(row) >= {"path", "crossed", "kept", "sparsity", "score", "epoch", "step", "phase"}


def gaps(path: Path, **options: Any) -> list[tuple[float, float]]:
    """Of a run's entries: what is kept, and how far its score is from what the index says."""
    _, trail = run(path, [0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2], **options)
    tester, found = lightning.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False), []
    for entry in trail.entries:
        result = tester.validate(entry.prune(Toy()), loaders()["val_dataloaders"], verbose=False)
        found.append((entry.kept, abs(result[0]["val_acc"] - entry.score)))
    assert len(found) > 3
    return found


@pytest.mark.parametrize("gate", ["fading", "held"])
def test_pruned_entries_score_what_the_index_says(gate: str, tmp_path: Path) -> None:
    """What an entry keeps is folded, and so the pruned network is the soft one, early in the phase too."""
    assert max(gap for _, gap in gaps(tmp_path, gate=gate)) == 0


def test_entries_of_a_sigmoid_score_nearly_what_the_index_says(tmp_path: Path) -> None:
    found = gaps(tmp_path, gate="sigmoid")
    # soft in the fit, hard here: late in the phase the temperature is low, and no more than one of 32 images may flip
    late = [gap for kept, gap in found if kept <= 0.3]
    assert len(late) == 2
    assert max(late) <= 1 / 32 + 1e-6
    assert sum(gap for _, gap in found) / len(found) <= 1 / 32 + 1e-6


def test_pick(tmp_path: Path) -> Any:
    folder = tmp_path / "trail"
    folder.mkdir()
    base = {"sparsity": 0, "phase": "sparsify", "epoch": 0, "step": 0, "metric": "val_acc"}
    rows = [("a", 0.5, 0.9), ("b", 0.2, 0.8), ("c", 0.1, 0.8), ("d", 0.05, 0.6)]
    index = [base | {"path": p, "crossed": [k], "kept": k, "score": s} for p, k, s in rows]
    (folder / "index.json").write_text(json.dumps(index))
    trail = Trail(folder)

    def name(**constraint: Any) -> Any:
        return trail.pick(**constraint).path[-1]

    assert name() == "a"
    assert name(max_kept=0.3) == "c"  # equal scores: the sparser
    assert name(max_kept=0.06) == "d"
    assert name(mode="min") == "d"
    assert name(min_kept=0.15, max_kept=0.3) == "b"
    with pytest.raises(ValueError, match=r"between 0.0 and 0.01 .* there are: 0.500, 0.200"):
        trail.pick(max_kept=0.01)
    with pytest.raises(FileNotFoundError, match=r"trail=\[...\]"):
        Trail(tmp_path)


def test_prints_as_a_table(tmp_path: Path) -> None:
    base = {"phase": "sparsify", "epoch": 3, "step": 40, "metric": "val_acc"}
    rows = [("a.ckpt", [0.7, 0.5], 0.5, 0.93214), ("b.ckpt", [0.2], 0.2, None)]
    index = [base | {"path": p, "crossed": c, "kept": k, "sparsity": 1 - k, "score": s} for p, c, k, s in rows]
    (tmp_path / "index.json").write_text(json.dumps(index))
    lines = str(Trail(tmp_path)).splitlines()
    assert lines[0].split() == ["crossed", "kept", "sparsity", "phase", "epoch", "step", "val_acc", "checkpoint"]
    assert lines[2].split() == ["0.7,", "0.5", "50.00%", "50.00%", "sparsify", "3", "40", "0.9321", "a.ckpt"]
    assert lines[3].split() == ["0.2", "20.00%", "80.00%", "sparsify", "3", "40", "-", "b.ckpt"]
    assert len({len(line) for line in lines}) == 1
    (tmp_path / "index.json").write_text("[]")
    assert "checkpoint" in str(Trail(tmp_path))


def test_a_resumed_run_goes_on_with_the_index(tmp_path: Path) -> None:
    _, trail = run(tmp_path, [0.7, 0.1])
    first = trail.entries[0]
    callback = LTPCallback(target_sparsity=0.9, sparsify=0.7, trail=[0.7, 0.1], trail_dir=str(tmp_path / "again"))
    trainer(tmp_path, [callback], max_epochs=20).fit(Toy(), **loaders(), ckpt_path=first.path)
    again = Trail(tmp_path / "again").entries
    assert [e.crossed for e in again] == [e.crossed for e in trail.entries]
    assert again[0].kept == first.kept
    assert again[-1].kept == trail.entries[-1].kept
    assert [Path(e.path).parent.resolve() for e in again] == [tmp_path / "trail", tmp_path / "again"]
    for entry in again:
        assert zeros(entry.prune(Toy())) > 0  # each from the folder of its run


def test_an_index_that_a_killed_process_did_not_write_is_written_by_the_resumed_run(tmp_path: Path) -> None:
    _, trail = run(tmp_path, [0.1])
    (tmp_path / "trail" / "index.json").unlink()
    (tmp_path / "trail" / "index.json.new").write_text("[{")
    callback = LTPCallback(target_sparsity=0.9, sparsify=0.7, trail=[0.1], trail_dir=str(tmp_path / "trail"))
    trainer(tmp_path, [callback], max_epochs=20).fit(Toy(), **loaders(), ckpt_path=trail.entries[0].path)
    assert Trail(tmp_path / "trail").entries == trail.entries
    assert not (tmp_path / "trail" / "index.json.new").exists()
