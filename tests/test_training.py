import math

import pytest
import torch
from torch import nn
from torchvision import models

from pipeline import mixing, networks, training
from pipeline.errors import InputError
from tests.conftest import make_block

CPU = torch.device("cpu")


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 8 * 8, 3))

    def forward(self, images):
        return self.layers(images)


@pytest.fixture
def batches():
    return mixing.MixedBatches({"clean": make_block(64)}, {"clean": 16}, seed=0, device=CPU)


@pytest.fixture
def recipe(settings):
    return settings.clean.model_copy(update={"epochs": 4, "batch_size": 16, "warmup_epochs": 1.0})


def scores(*values):
    """A validation that gives these accuracies in turn and notes the network's weights each time."""
    seen = []

    def validate(network):
        seen.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
        return values[len(seen) - 1]

    return validate, seen


def test_the_first_of_the_best_epochs_is_kept(batches, recipe):
    validate, seen = scores(0.2, 0.9, 0.9, 0.5)
    fitted = training.fit(Tiny(), batches, validate, recipe, text="t", device=CPU)
    assert fitted.best.epoch == 2
    assert [line["val_accuracy"] for line in fitted.history] == [0.2, 0.9, 0.9, 0.5]
    assert all((fitted.state_dict[name] == seen[1][name]).all() for name in seen[1])
    assert any((seen[3][name] != seen[1][name]).any() for name in seen[1])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_training_learns_what_can_be_learned_and_repeats_itself(batches, recipe, optimizer):
    recipe = recipe.model_copy(update={"epochs": 30, "optimizer": optimizer, "lr": 0.02 if optimizer == "sgd" else 0.005})
    block = make_block(64)
    fits = [
        training.fit(
            Tiny(), batches, lambda network: networks.accuracy(network, block.images, block.labels, 64), recipe, text="t", device=CPU
        )
        for _ in range(2)
    ]
    assert fits[0].history[-1]["train_accuracy"] > 0.95
    assert fits[0].history == fits[1].history


def test_a_loss_that_is_no_number_stops_with_advice(batches, recipe):
    recipe = recipe.model_copy(update={"lr": 1e30, "warmup_epochs": 0.0})
    with pytest.raises(InputError, match=r"the loss is nan after epoch \d; lower its lr in params.yaml \(now 1e\+30\)"):
        training.fit(Tiny(), batches, lambda _: 0.0, recipe, text="t", device=CPU)


def test_learning_rate_schedules(recipe):
    cosine = [training.learning_rate(epoch, recipe) for epoch in (0, 0.5, 1, 2.5, 4)]
    assert cosine == pytest.approx([0, 0.5, 1, 0.5, 0])
    constant = recipe.model_copy(update={"schedule": "constant", "warmup_epochs": 0.0})
    assert {training.learning_rate(epoch, constant) for epoch in (0, 1, 4)} == {1.0}


def test_augmentation_moves_whole_images_and_nothing_else():
    images = torch.rand(64, 3, 8, 8)
    generator = torch.Generator().manual_seed(0)
    assert training.augment(images, "none", generator) is images
    flipped = training.augment(images, "flip", generator)
    is_flipped = (flipped == images.flip(3)).flatten(1).all(1)
    assert ((flipped == images).flatten(1).all(1) | is_flipped).all()
    assert 10 < is_flipped.sum() < 54
    cropped = training.augment(images, "crop", generator)
    padded = nn.functional.pad(images, (training.CROP_PADDING,) * 4)
    corners = set()
    for image, source in zip(cropped, padded, strict=True):
        windows = {(y, x) for y in range(9) for x in range(9) if (image == source[:, y : y + 8, x : x + 8]).all()}
        assert windows
        corners |= windows
    assert len(corners) > 30
    assert training.augment(images, "flip+crop", generator).shape == images.shape


def test_the_loss_is_the_mean_over_images(batches, recipe):
    network = Tiny()
    fitted = training.fit(network, batches, lambda _: 0.0, recipe.model_copy(update={"epochs": 1, "lr": 1e-12}), text="t", device=CPU)
    assert fitted.history[0]["train_loss"] == pytest.approx(math.log(3), abs=0.3)


@pytest.mark.parametrize(("device", "multiplies", "expected"), [("cpu", True, "bf16"), ("cpu", False, "fp32"), ("cuda", True, "fp32")])
def test_auto_trains_in_bf16_only_where_it_was_measured_faster(monkeypatch, device, multiplies, expected):
    monkeypatch.setattr(training, "multiplies_bfloat16", lambda _: multiplies)
    assert training.precision_for("auto", torch.device(device)) == expected
    assert training.precision_for("bf16", torch.device(device)) == "bf16"


def test_bf16_training_learns_like_fp32(batches, recipe):
    block = make_block(64)
    histories = {}
    for precision in ("fp32", "bf16"):
        torch.manual_seed(0)
        network = models.resnet18(num_classes=3)
        settings = recipe.model_copy(update={"precision": precision, "lr": 0.01, "epochs": 3})
        fitted = training.fit(
            network, batches, lambda judged: networks.accuracy(judged, block.images, block.labels, 64), settings, text="t", device=CPU
        )
        assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in fitted.state_dict.values())
        histories[precision] = [epoch["train_loss"] for epoch in fitted.history]
    assert histories["bf16"][0] == pytest.approx(histories["fp32"][0], rel=0.15)
    assert all(losses[-1] < losses[0] / 2 for losses in histories.values())
