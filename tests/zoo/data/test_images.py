"""Image tensors: normalised, resized, shifted and flipped."""

from __future__ import annotations

import torch

from lightning_prune.zoo.data.images import ImageTensors, random_shift_flip
from lightning_prune.zoo.data.loading import seeded_generator


def test_image_tensors_normalise_and_resize() -> None:
    raw = torch.tensor([[0, 255], [255, 0]], dtype=torch.uint8).view(1, 1, 2, 2)
    plain = ImageTensors(raw, torch.tensor([3]), mean=(0.5,), std=(0.25,))
    image, label = plain[0]
    torch.testing.assert_close(image, torch.tensor([[[-2.0, 2.0], [2.0, -2.0]]]))
    assert int(label) == 3
    large = ImageTensors(raw, torch.tensor([3]), mean=(0.0,), std=(1.0,), image_size=4)
    expected = torch.nn.functional.interpolate(raw.float() / 255, (4, 4), mode="bilinear", align_corners=False)
    torch.testing.assert_close(large.__getitems__([0, 0])[0], expected.expand(2, 1, 4, 4))
    one = ImageTensors(raw, torch.tensor([3]), mean=(0.0,), std=(1.0,), image_size=1)
    torch.testing.assert_close(one[0][0], torch.tensor([[[0.5]]]))


def test_shift_and_flip_move_pixels_and_nothing_else() -> None:
    images = torch.rand(64, 2, 6, 6) + 1
    fill = torch.tensor([-1.0, -2.0])
    moved = random_shift_flip(images, 2, True, fill, seeded_generator(0))
    shifts, flips = set(), set()
    for before, after in zip(images, moved, strict=True):
        padded = fill.view(2, 1, 1).repeat(1, 10, 10)
        matches = []
        for flip in (False, True):
            padded[:, 2:8, 2:8] = before
            for top in range(5):
                for left in range(5):
                    window = padded[:, top : top + 6, left : left + 6]
                    if after.equal(window.flip(2) if flip else window):
                        matches.append((flip, top, left))
        assert len(matches) == 1
        flips.add(matches[0][0])
        shifts.add(matches[0][1:])
    assert flips == {False, True}
    assert len(shifts) > 15
    assert random_shift_flip(images, 0, False, fill, seeded_generator(0)).equal(images)
    assert moved.equal(random_shift_flip(images, 2, True, fill, seeded_generator(0)))
