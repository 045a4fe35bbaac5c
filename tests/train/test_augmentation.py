import torch
from torch import nn

from pipeline.train import augmentation


def generator():
    return torch.Generator().manual_seed(0)


def test_augmentation_moves_whole_images_and_nothing_else():
    images = torch.rand(64, 3, 8, 8)
    random = generator()
    assert augmentation.draw("none", 64, random).apply(images) is images
    flipped = augmentation.draw("flip", 64, random).apply(images)
    is_flipped = (flipped == images.flip(3)).flatten(1).all(1)
    assert ((flipped == images).flatten(1).all(1) | is_flipped).all()
    assert 10 < is_flipped.sum() < 54
    cropped = augmentation.draw("crop", 64, random).apply(images)
    padded = nn.functional.pad(images, (augmentation.CROP_PADDING,) * 4)
    corners = set()
    for image, source in zip(cropped, padded, strict=True):
        windows = {
            (y, x)
            for y in range(9)
            for x in range(9)
            if (image == source[:, y : y + 8, x : x + 8]).all()
        }
        assert windows
        corners |= windows
    assert len(corners) > 30
    assert augmentation.draw("flip+crop", 64, random).apply(images).shape == images.shape


def test_a_move_can_be_taken_back_but_for_what_the_crop_cut_off():
    images = torch.rand(64, 3, 16, 16) + 1
    move = augmentation.draw("flip+crop", 64, generator())
    back = move.undo(move.apply(images))
    seen = back > 0
    assert (back[seen] == images[seen]).all()
    assert seen.flatten(1).float().mean(1).min() >= (12 / 16) ** 2
    assert seen[:, :, 4:12, 4:12].all(), "the middle is in every crop"
    assert 0.7 < seen.float().mean() < 0.9
    assert (augmentation.draw("none", 64, generator()).undo(images) == images).all()


def test_selected_moves_are_those_of_the_selected_images():
    images, chosen = torch.rand(8, 3, 16, 16), torch.arange(8) % 3 == 0
    move = augmentation.draw("flip+crop", 8, generator())
    assert (move.select(chosen).apply(images[chosen]) == move.apply(images)[chosen]).all()
