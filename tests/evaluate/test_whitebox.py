import dataclasses
import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torchattacks.attack import Attack

from pipeline import networks
from pipeline.attacks.params import Threat
from pipeline.evaluate import whitebox
from pipeline.evaluate.target import Passes, Target
from pipeline.networks import matrix_products, scores
from pipeline.networks.memory_fit import InParts
from tests import narrow
from tests import small_networks as small
from tests.conftest import FGSM, PGD, make_block

pytestmark = pytest.mark.usefixtures("one_thread")


def target(network, n_classes=2, batch_size=8):
    return Target.of(network, n_classes, batch_size=batch_size, seed=0)


@pytest.fixture
def judged():
    return target(small.network(), 10)


def block_of(n):
    """Random images with the labels that an untrained network gives them.

    All are classified correctly, and soon fall.
    """
    block = make_block(n, size=8)
    return dataclasses.replace(block, labels=networks.predict(small.network(), block.images, n))


class Brightness(nn.Module):
    """Class 1 if the mean pixel is above a half, else class 0.

    An image falls exactly when its mean is within eps of a half.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(20.0))

    def forward(self, images):
        score = (images.mean((1, 2, 3)) - 0.5) * self.scale
        return torch.stack([-score, score], dim=1)


def grey_block(levels):
    images = np.stack([np.full((3, 32, 32), level, np.uint8) for level in levels])
    block = make_block(len(levels))
    return type(block)(
        images=images,
        labels=(np.array(levels) > 127).astype(np.int64),
        ids=block.ids,
        split=np.ones(len(levels), np.uint8),
    )


LEVELS = [60, 119, 121, 126, 129, 134, 136, 137, 200]  # 255 / 2 = 127.5; eps is 8 levels


@pytest.mark.parametrize("entry", [FGSM, {**PGD, "alpha": "4/255"}], ids=["FGSM", "PGD"])
def test_robust_accuracy_is_exact_where_it_is_known(entry):
    network, block = Brightness(), grey_block(LEVELS)
    threat = Threat.model_validate({**entry, "restarts": 2})
    outcome = whitebox.withstands(target(network, batch_size=4), block, threat, "t")
    assert outcome.standing.tolist() == [abs(level - 127.5) > 8 for level in LEVELS]
    assert network.scale.requires_grad
    assert network.training


def test_more_restarts_never_help_the_defender(judged):
    threat = Threat.model_validate({**PGD, "eps": "1/255", "alpha": "1/255", "restarts": 4})
    outcome = whitebox.withstands(judged, block_of(24), threat, "t")
    assert len(outcome.after) == 4
    for fewer, more in itertools.pairwise(outcome.after):
        assert (more <= fewer).all()


def test_later_restarts_continue_the_earlier_ones(judged):
    block, entry = block_of(24), {**PGD, "eps": 2 / 255, "alpha": 1 / 255, "steps": 2}
    threats = [Threat.model_validate({**entry, "restarts": count}) for count in (1, 2, 3)]
    one, _, three = (whitebox.withstands(judged, block, threat, "t") for threat in threats)
    later = whitebox.withstands(judged, block, threats[1], "t", one.standing, earlier=1)
    np.testing.assert_array_equal([*one.after, *later.after], three.after)


def test_attacked_images_are_held_to_the_ball(judged):
    class TooFar(Attack):
        def forward(self, images, labels):
            return images + 1

    images, eps = torch.rand(2, 3, 8, 8), 8 / 255
    far = whitebox.perturb(
        TooFar("TooFar", judged.network),
        images,
        torch.tensor([0, 1]),
        eps,
        Passes(),
        0,
    )
    assert (far - images).abs().max() <= eps + 1e-7
    assert far.max() <= 1


def test_passes_count_every_image_forward_and_backward(judged):
    threat = Threat.model_validate({**PGD, "eps": 1e-6, "alpha": 1e-7, "restarts": 2})
    outcome = whitebox.withstands(judged, block_of(12), threat, "t")
    assert outcome.standing.all(), "so small an eps changes nothing"
    assert outcome.passes.as_metrics() == {
        "forward_passes": 2 * 3 * 12,
        "backward_passes": 2 * 3 * 12,
    }


def test_stored_images_are_classified_once(judged):
    block, passes = block_of(20), Passes()
    with passes.counting(judged.network):
        for rows in (slice(12), slice(20), slice(5, 20)):
            few = block.select(rows)
            assert judged.is_right(few).all()
            assert (judged.predicted(few) == few.labels).all()
    assert passes.forward == 20


def test_a_run_of_many_steps_holds_the_runs_of_fewer(judged):
    block = block_of(24)
    threat = Threat.model_validate({**PGD, "eps": "64/255", "alpha": "16/255", "restarts": 1})
    together = whitebox.by_steps(judged, block, threat, [1, 2, 4], "t")
    assert len({int(standing.sum()) for standing in together.values()}) > 1
    for steps, standing in together.items():
        alone = whitebox.withstands(
            judged, block, Threat.model_validate({**threat.model_dump(), "steps": steps}), "t"
        ).standing
        assert (standing == alone).all(), steps


def test_a_step_longer_than_all_pixels_ends_where_the_longest_does(judged):
    block = block_of(12)
    share, longest = (
        Threat.model_validate({**PGD, "eps": "64/255", "alpha": alpha, "restarts": 1}).resolved
        for alpha in ("eps/0.1", 1.0)
    )
    assert share == longest
    several = whitebox.by_steps(judged, block, share, [1, 2], "t")
    assert set(several) == {1, 2}


def test_a_smaller_sample_is_part_of_a_larger_one():
    block = make_block(30)
    small, large, every = (scores.sample(block, n, seed=3) for n in (5, 12, None))
    assert set(small) < set(large) < set(every)
    assert every.tolist() == list(range(30))
    assert scores.sample(block, 99, seed=3).tolist() == list(range(30))


def test_summaries_have_wilson_intervals_and_classes():
    result = scores.summarise(np.array([True] * 8 + [False] * 2), np.array([0] * 5 + [1] * 5), 3)
    assert result == {
        "accuracy": 0.8,
        "low95": 0.490162,
        "high95": 0.943318,
        "balanced_accuracy": 0.8,
        "n": 10,
        "per_class": [1.0, 0.6, None],
    }


@pytest.fixture
def resnet_and_block():
    """A narrow ResNet whose classes depend on the image, and images that it gets right."""
    torch.manual_seed(0)
    network, block = narrow.NarrowResNet(10).train(), make_block(32)
    for _ in range(30):
        network(torch.from_numpy(block.images) / 255)
    network.eval()
    return network, dataclasses.replace(block, labels=networks.predict(network, block.images))


def test_the_network_itself_decides_not_the_one_that_attacks_use(resnet_and_block):
    network, block = resnet_and_block
    own = Target.of(network, 10, batch_size=8, seed=0, image_size=16)
    assert isinstance(own.attacked.network, matrix_products.Frozen)
    assert not isinstance(own.network.network, matrix_products.Frozen)
    other = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 10))
    blind = dataclasses.replace(own, attacked=InParts(other))
    harmless = Threat.model_validate({"attack": "FGSM", "eps": 1e-6, "restarts": 1})
    assert whitebox.withstands(blind, block, harmless, "t").standing.all()


def test_attacks_by_matrix_products_find_what_others_do(resnet_and_block):
    network, block = resnet_and_block
    entry = {"eps": 1e-2, "alpha": 2e-3, "steps": 5, "random_start": True, "restarts": 1}
    threat = Threat.model_validate({"attack": "PGD", **entry})
    targets = [
        Target.of(network, 10, batch_size=32, seed=0, image_size=size) for size in (16, None)
    ]
    found = [whitebox.withstands(target, block, threat, "t").standing for target in targets]
    assert 0 < found[0].sum() < 32
    assert (found[0] != found[1]).sum() <= 1, "but for rounding at the border"
