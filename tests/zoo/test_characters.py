"""The language model of characters: what it sees, its name, and what it refuses."""

from __future__ import annotations

import pytest
import timm
import torch

from lightning_prune.zoo.characters import CharacterTransformer


def test_a_character_is_predicted_from_those_before_it_alone() -> None:
    torch.manual_seed(0)
    model = timm.create_model("character_transformer", num_classes=20, in_chans=1, width=16, heads=2, length=12)
    assert isinstance(model, CharacterTransformer)
    x = torch.randint(20, (2, 12))
    other = x.clone()
    other[:, 5] = (x[:, 5] + 1) % 20
    one, two = model(x), model(other)
    assert one.shape == (2, 20, 12)
    torch.testing.assert_close(one[..., :5], two[..., :5])
    assert bool((one[..., 5:] != two[..., 5:]).any(1).all())
    torch.testing.assert_close(model(x[:, :7]), one[..., :7])


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match="width=10 must be a multiple of heads=4, and in_chans=1 must be 1"):
        CharacterTransformer(width=10)
    with pytest.raises(ValueError, match="in_chans=3 must be 1"):
        CharacterTransformer(in_chans=3)
