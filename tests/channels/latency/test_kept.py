"""Times of layers in a file: read back, apart by clock, and whatever else it holds is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_prune import PlanError
from lightning_prune.channels.latency.kept import read_times, write_times
from tests.channels.latency.clocks import Counter


def test_times_come_back_and_those_of_other_clocks_stay(tmp_path: Path) -> None:
    path, one, two = tmp_path / "folder" / "times.json", Counter(), Counter()
    two.threads = 2
    assert read_times(path, one) == {}
    write_times(path, one, {"a": 1.5})
    write_times(path, two, {"a": 2.5})
    write_times(path, one, {"b": 3.0})
    assert read_times(path, one) == {"a": 1.5, "b": 3.0}
    assert read_times(path, two) == {"a": 2.5}
    assert [p.name for p in path.parent.iterdir()] == ["times.json"]


@pytest.mark.parametrize("text", ["", "[]", '{"clock": {"a": "fast"}}', '{"clock": {"a": -1.0}}', '{"clock": 3}', "{"])
def test_what_is_no_such_file_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    path.write_text(text)
    with pytest.raises(PlanError, match=r"times\.json holds no times of layers"):
        read_times(path, Counter())
    with pytest.raises(PlanError, match="holds no times"):
        write_times(path, Counter(), {"a": 1.0})
    assert path.read_text() == text
