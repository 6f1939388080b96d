"""What a plan says of factorised layers: its JSON, in one with cuts, and by the names of modules around it."""

from __future__ import annotations

import json
import re

import pytest

from lightning_prune import PlanError, PruningPlan
from lightning_prune.plan.cut import Change, Cut
from lightning_prune.plan.factor import Factor

PLAN = PruningPlan({"a.weight": Cut((6, 8), {0: (0, 1, 2, 3)})}, factors={"b": Factor((8, 4, 3, 3), 3)})


def test_json_round_trip() -> None:
    again = PruningPlan.from_json(PLAN.to_json())
    assert again == PLAN
    assert again.same_cut(PLAN)
    assert not again.same_cut(PruningPlan(PLAN.cuts))
    assert "factors" not in json.loads(PruningPlan(PLAN.cuts).to_json())
    assert "1 layers factorised" in str(again)


@pytest.mark.parametrize(("change", "message"), [
    ({"rank": 0}, "factorises b of shape .* at rank 0"),
    ({"rank": 8}, r"rank x \(8 \+ 36\) < 8 x 36; leave the layer dense"),
    ({"rank": True}, "rank True"),
    ({"rank": None}, "rank None"),
    ({"shape": [8, 0, 3, 3]}, "has shape"),
    ({"shape": [8]}, r"of shape \(8,\)"),
    ({"shape": "8"}, "the shape of 'b' is not a list"),
])  # fmt: skip
def test_wrong_factors_are_named(change: dict[str, object], message: str) -> None:
    data = json.loads(PLAN.to_json())
    data["factors"]["b"] |= change
    with pytest.raises(PlanError, match=message):
        PruningPlan.from_json(json.dumps(data))


def test_names_of_modules_around_it() -> None:
    above = PLAN.above("net.0")
    assert above.factors == {"net.0.b": Factor((8, 4, 3, 3), 3)}
    assert above.below("net.0") == PLAN
    assert PruningPlan({}, factors={"": Factor((8, 8), 2)}).above("x").factors.keys() == {"x"}


def test_cuts_of_both_parts_are_cuts_of_the_layer() -> None:
    cuts = {
        "b.0.weight": Cut((3, 4, 3, 3), {0: (0, 2), 1: (1, 2, 3)}),
        "b.1.weight": Cut((8, 3, 1, 1), {0: (0, 1, 2, 3, 4, 5, 6), 1: (0, 2)}),
        "b.1.bias": Cut((8,), {0: (0, 1, 2, 3, 4, 5, 6)}),
        "c.weight": Cut((7,), {0: (1,)}),
    }
    attributes = {
        "b.0": {"in_channels": Change(4, 3), "out_channels": Change(3, 2)},
        "b.1": {"in_channels": Change(3, 2), "out_channels": Change(8, 7)},
    }
    both = PLAN.then(PruningPlan(cuts, attributes))
    assert both.factors == {"b": Factor((7, 3, 3, 3), 2)}
    assert both.cuts == PLAN.cuts | {
        "b.weight": Cut((8, 4, 3, 3), {0: (0, 1, 2, 3, 4, 5, 6), 1: (1, 2, 3)}),
        "b.bias": Cut((8,), {0: (0, 1, 2, 3, 4, 5, 6)}),
        "c.weight": Cut((7,), {0: (1,)}),
    }
    assert both.attributes == {"b": {"in_channels": Change(4, 3), "out_channels": Change(8, 7)}}


def test_factors_follow_cuts_and_other_factors() -> None:
    both = PLAN.then(PruningPlan({}, factors={"a": Factor((4, 8), 2)}))
    assert both.cuts == PLAN.cuts
    assert set(both.factors) == {"a", "b"}
    for second, message in (
        (PruningPlan({}, factors={"b.0": Factor((3, 36), 1)}), "a part of b, which it factorises already"),
        (PruningPlan({"b.0.weight": Cut((4, 4, 3, 3), {0: (1,)})}), "they are (3, 4, 3, 3)"),
        (PruningPlan({"b.1.weight": Cut((8, 3, 1, 1), {0: ()})}), "keep a channel. Undo the factorisation first"),
        (PruningPlan({"a.weight": Cut((4, 8), {0: (1,)})}, form="graph"), "cut channels with form='eager'"),
    ):
        with pytest.raises(PlanError, match=re.escape(message)):
            PLAN.then(second)
