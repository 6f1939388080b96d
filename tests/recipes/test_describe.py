"""What recipes say of themselves, the names, and the page that is written from them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import lightning_prune.recipes as recipes
from lightning_prune.recipes import recipe_names, recipe_path
from lightning_prune.recipes.describe import Constant, describe, page

PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"

HEAD = "# T\n# paper: P\n# reports: R\n# note: one\n# note: two\n"
BODY = """model:
  model_name: alexnet
  lr: 0.1  # source: Table 2
  lr_steps:  # unverified
    10: 0.01
    20: 0.001
prune:
  class_path: lightning_prune.LTPCallback
  init_args:
    trail: [0.5, 0.1]  # ours: why
"""


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(recipes, "_FOLDER", tmp_path)
    return tmp_path / "made.yaml"


def test_a_recipe_is_read(made: Path) -> None:
    made.write_text(HEAD + BODY)
    assert recipe_names() == ["made"]
    recipe = describe("made")
    assert (recipe.title, recipe.paper, recipe.reports, recipe.notes) == ("T", "P", "R", ("one", "two"))
    assert recipe.constants == (
        Constant("lr", "0.1", "source", "Table 2"),
        Constant("lr_steps", "10: 0.01, 20: 0.001", "unverified"),
        Constant("trail", "[0.5, 0.1]", "ours", "why"),
    )
    assert "- `lr_steps: 10: 0.01, 20: 0.001` unverified\n- `trail: [0.5, 0.1]` ours: why" in page()
    assert "`lr: 0.1`" not in page()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BODY, "its head is '# title'"),
        ("# paper: P\n" + BODY, "its head is '# title'"),
        (HEAD + "model:\n  lr: 0.1\n", "'lr: 0.1' does not end in one of '# source, # unverified, # ours'"),
        (HEAD + "model:\n  lr: 0.1  # guessed\n", "'lr: 0.1  # guessed' does not end in one of"),
    ],
)
def test_a_constant_without_its_origin_is_refused(made: Path, text: str, message: str) -> None:
    made.write_text(text)
    with pytest.raises(ValueError, match=message):
        describe("made")


def test_every_recipe_tells_where_each_of_its_constants_comes_from() -> None:
    for name in recipe_names():
        found = {c.key for c in describe(name).constants}
        recipe = yaml.safe_load(recipe_path(name).read_text())
        assert recipe["prune"]["init_args"].keys() <= found
        assert recipe["trainer"].keys() <= found
        assert recipe["model"].keys() - {"model_name"} <= found


def test_the_page_is_what_the_recipes_say() -> None:
    assert PAGE.read_text() == page() + "\n", "run: python -m lightning_prune.recipes.describe > docs/recipes.md"


def test_a_name_that_there_is_not() -> None:
    assert recipe_path("digits_ltp").is_file()
    with pytest.raises(ValueError, match=r"no recipe 'digits_lpt'. Did you mean digits_ltp"):
        recipe_path("digits_lpt")
    with pytest.raises(ValueError, match="There are: anp_vs_vgg16_cifar10, "):
        recipe_path("zzz")
