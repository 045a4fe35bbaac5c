import pytest
import torch
from torch import nn

from pipeline import attacks, networks
from pipeline.attacks.params import Threat
from pipeline.base import console
from pipeline.base.errors import InputError
from pipeline.evaluate import whitebox
from pipeline.evaluate.target import Target
from pipeline.networks import memory_fit
from pipeline.networks.memory_fit import InParts
from tests import small_networks as small
from tests.conftest import FGSM, PGD, attack_spec, make_block

pytestmark = pytest.mark.usefixtures("one_thread", "unsaid")
N = 8


class Narrow(nn.Module):
    """A network that runs out of memory with more than `most` images, `forward` or `backward`."""

    def __init__(self, most, where):
        super().__init__()
        self.network, self.most, self.where = networks.frozen_copy(small.network()), most, where
        self.taken = []

    def forward(self, images):
        if len(images) > self.most and self.where == "forward":
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.taken.append(len(images))
        logits = self.network(images)
        return (
            small.FullInBackward.apply(logits)
            if len(images) > self.most and logits.requires_grad
            else logits
        )


def test_predictions_take_smaller_parts_than_fit():
    network = Narrow(3, "forward")
    block = make_block(N, size=8)
    expected = networks.predict(network.network, block.images)
    assert (networks.predict(network, block.images) == expected).all()
    assert max(network.taken) == 2


@pytest.fixture
def unsaid():
    console.say_once.cache_clear()


@pytest.fixture
def images():
    return torch.from_numpy(make_block(N, size=8).images) / 255


@pytest.fixture
def labels(images):
    return small.network().eval()(images).argmax(1)


OTHERS = [
    {
        "attack": "APGD",
        "eps": "8/255",
        "steps": 3,
        "n_restarts": 1,
        "loss": "ce",
        "eot_iter": 1,
        "rho": 0.75,
    },
    {
        "attack": "FAB",
        "eps": "8/255",
        "steps": 3,
        "n_restarts": 1,
        "alpha_max": 0.1,
        "eta": 1.05,
        "beta": 0.9,
        "multi_targeted": False,
    },
    {"attack": "MIFGSM", "eps": "8/255", "alpha": "2/255", "steps": 3, "decay": 1.0},
]


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("entry", [FGSM, PGD, *OTHERS], ids=lambda entry: entry["attack"])
def test_an_attack_on_parts_is_the_attack_on_the_batch(entry, where, images, labels, capsys):
    def attacked(network):
        return attacks.perturb(
            attacks.build(attack_spec(**entry), network, 10), images, labels, seed=3
        )

    narrow = Narrow(3, where)
    assert torch.allclose(
        attacked(InParts(narrow)), attacked(networks.frozen_copy(small.network())), atol=1e-6
    )
    assert max(narrow.taken[-4:]) == 2, "8 do not fit, nor do 4"
    said = capsys.readouterr().out.splitlines()
    assert [line.split(" fit into")[0] for line in said] == [
        "8 images at once do not",
        "4 images at once do not",
    ]
    assert said[0].endswith("continuing with 4, in the same batches")


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_steps_from_a_stored_perturbation_are_the_same(where, images, labels):
    def attacked(network):
        return attacks.Ascent()(
            network, images, images + 0.01, labels, eps=8 / 255, alpha=2 / 255, steps=3
        )

    assert torch.allclose(
        attacked(InParts(Narrow(3, where))), attacked(small.network().eval()), atol=1e-6
    )


def test_judging_takes_parts_too(images, labels):
    assert networks.is_right(InParts(Narrow(3, "forward")), images, labels).all()


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_iterates_of_a_restarted_run_are_counted_from_its_start(where):
    block = make_block(N, size=8)

    def judged(network):
        target = Target.of(network, 10, batch_size=N, seed=0)
        return whitebox.by_steps(
            target, block, Threat.model_validate({**PGD, "restarts": 1}), [1, 2, 5], "t"
        )

    parts, whole = judged(Narrow(3, where)), judged(small.network())
    assert all((parts[count] == whole[count]).all() for count in (1, 2, 5))


def test_a_batch_that_fits_goes_through_whole_and_silently(images, labels, capsys):
    narrow = Narrow(N, "forward")
    attacks.perturb(attacks.build(attack_spec(**FGSM), InParts(narrow), 10), images, labels, seed=0)
    assert narrow.taken == [N]
    assert capsys.readouterr().out == ""


def test_where_not_even_one_image_fits_the_user_is_told(images, labels):
    with pytest.raises(
        InputError,
        match=r"not even one image fits into the memory of cpu .*; see what else uses it",
    ):
        networks.is_right(InParts(Narrow(0, "forward")), images, labels)


def test_another_network_or_another_error_is_left_alone(images):
    def full():
        raise torch.OutOfMemoryError("CUDA out of memory")

    def wrong():
        raise RuntimeError("shapes do not agree")

    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        memory_fit.fitted(small.network(), images, full)
    with pytest.raises(RuntimeError, match="shapes do not agree"):
        memory_fit.fitted(InParts(small.network()), images, wrong)
