import numpy as np
import pytest
import torch
import torchattacks
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

from pipeline import attacks, params
from pipeline.errors import InputError
from tests.conftest import FGSM, PGD, attack_spec


class Linear(nn.Module):
    """Logits that are a known linear function of the pixels, so that the best attack is known too."""

    def __init__(self, n_classes: int = 2) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_classes, 3 * 8 * 8, generator=torch.Generator().manual_seed(0)))

    def forward(self, images):
        return images.flatten(1) @ self.weight.T


@pytest.fixture
def images():
    return torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))


LABELS = torch.tensor([0, 1, 0, 1, 1])


def test_fgsm_equals_the_closed_form_on_a_linear_model(images):
    network = Linear()
    adv_images = attacks.perturb(attacks.build(attack_spec(**FGSM), network, 2), images, LABELS, seed=0)
    towards_other = (network.weight[1 - LABELS] - network.weight[LABELS]).sign().view_as(images)
    expected = (images + 8 / 255 * towards_other).clamp(0, 1)
    torch.testing.assert_close(adv_images, expected.detach(), rtol=0, atol=0)


def test_pgd_without_random_start_reaches_the_same_corner(images):
    spec = attack_spec(**{**PGD, "steps": 10, "random_start": False})
    adv_images = attacks.perturb(attacks.build(spec, Linear(), 2), images, LABELS, seed=0)
    fgsm = attacks.perturb(attacks.build(attack_spec(**FGSM), Linear(), 2), images, LABELS, seed=0)
    torch.testing.assert_close(adv_images, fgsm, rtol=0, atol=1e-6)


class Sure(Linear):
    """So sure of class 0 that in float32 the gradient of the mean loss is zero at the pixels, and that of the sure class is before."""

    def forward(self, images):
        return 1e-4 * super().forward(images) + torch.tensor([95.0, 0.0])


@pytest.mark.parametrize("spec", [FGSM, {**PGD, "random_start": False}, {"attack": "BIM", "eps": "8/255", "alpha": "2/255", "steps": 3}])
def test_gradients_of_a_sure_network_do_not_underflow(images, spec):
    network, labels = Sure(), torch.zeros(5, dtype=torch.int64)
    assert (torchattacks.FGSM(network, eps=8 / 255)(images, labels) == images).all()
    moved = attacks.perturb(attacks.build(attack_spec(**spec), network, 2), images, labels, seed=0) - images
    assert (moved.sign() == network.weight[1].sign().view_as(images[0])).all()


PARAMETERS = {
    "alpha": "2/255", "steps": 2, "random_start": True, "decay": 1.0, "eot_iter": 1, "loss": "ce", "m": 2, "N": 2, "beta": 1.5, "scale": 10,
    "std": 0.1, "resize_rate": 0.9, "diversity_prob": 0.5, "kernel_name": "gaussian", "len_kernel": 5, "nsig": 3, "n_restarts": 1,
    "rho": 0.75, "alpha_max": 0.1, "eta": 1.05, "multi_targeted": False, "n_queries": 5, "p_init": 0.8, "resc_schedule": True,
    "version": "rand", "num_iter_set": 2, "momentum": 1.0, "amplification": 2.0, "prob": 0.7, "project_factor": 0.8,
    "noise_type": "guassian", "noise_sd": 0.1, "noise_batch_size": 2, "batch_max": 8,
    "delta": 0.01, "lr": 0.01, "nb_iter": 1, "nb_sample": 4, "max_batch_size": 4,
}  # fmt: skip
SLOW = ("AutoAttack",)


@pytest.mark.parametrize("name", [name for name in params.ATTACK_PARAMETERS if name not in SLOW])
@pytest.mark.filterwarnings("ignore")
def test_every_attack_of_the_table_runs_and_its_stored_images_keep_the_bound(name, images):
    special = {"loss": "margin"} if name == "Square" else {}
    wanted = {key: {**PARAMETERS, **special}[key] for key in params.ATTACK_PARAMETERS[name]}
    spec = attack_spec(attack=name, eps="8/255", **wanted)
    adv_images = attacks.perturb(attacks.build(spec, attacks.frozen_copy(Linear(4)), 4), images, LABELS, seed=0)
    clean = (images * 255).round().to(torch.uint8)
    stored = attacks.quantise(adv_images, clean, spec.eps)
    assert (stored.int() - clean.int()).abs().max() <= 8


def test_attacks_that_compare_four_classes_are_refused_for_fewer():
    with pytest.raises(InputError, match="APGDT: expected at least 4 classes, .* found 3"):
        attacks.build(
            attack_spec(attack="APGDT", eps=0.1, **{key: PARAMETERS[key] for key in params.ATTACK_PARAMETERS["APGDT"]}), Linear(3), 3
        )


@given(hnp.arrays(np.uint8, (2, 3, 4, 4)), hnp.arrays(np.float32, (2, 3, 4, 4), elements=st.floats(-2, 3, width=32)), st.floats(0.0001, 1))
def test_stored_pixels_never_leave_the_ball_or_the_range(clean, adv, eps):
    stored = attacks.quantise(torch.from_numpy(adv), torch.from_numpy(clean), eps).numpy()
    assert stored.dtype == np.uint8
    assert (np.abs(stored.astype(int) - clean.astype(int)) <= eps * 255 + 1e-6).all()


@given(hnp.arrays(np.uint8, (1, 3, 4, 4)), hnp.arrays(np.int16, (1, 3, 4, 4), elements=st.integers(-8, 8)))
def test_pixels_inside_the_ball_are_rounded_to_nearest_and_nothing_else(clean, delta):
    wanted = np.clip(clean + delta, 0, 255)
    adv = torch.from_numpy(wanted / 255 + 0.0015).float()  # under half a step
    stored = attacks.quantise(adv, torch.from_numpy(clean), 9 / 255)
    assert (stored.numpy() == wanted).all()


@pytest.mark.parametrize(("eps", "levels"), [(8 / 255, 8), (0.03, 7), (1 / 255, 1), (1.0, 255), (0.003, 0), (4 / 255, 4)])
def test_levels_that_fit(eps, levels):
    assert attacks.eps_levels(eps) == levels


def test_every_whole_number_of_levels_is_exact():
    assert [attacks.eps_levels(params.parse_level(f"{k}/255")) for k in range(1, 256)] == list(range(1, 256))


class Failing(Linear):
    def forward(self, images):
        raise torch.OutOfMemoryError("no memory")


def state(module):
    return [
        (name, tensor.clone(), tensor.requires_grad, tensor.grad) for name, tensor in (*module.named_parameters(), *module.named_buffers())
    ]


@pytest.mark.parametrize("make", [Linear, Failing])
def test_the_callers_model_and_generator_are_as_before_also_after_an_error(make, images):
    network = make()
    network.train()
    before, random_state = state(network), torch.get_rng_state()
    attack = attacks.build(attack_spec(**PGD), attacks.frozen_copy(network), 2)
    try:
        attacks.perturb(attack, images, LABELS, seed=3)
    except torch.OutOfMemoryError:
        assert make is Failing
    assert network.training
    for (_, tensor, grad_wanted, grad), (_, now, wanted_now, grad_now) in zip(before, state(network), strict=True):
        assert (tensor == now).all()
        assert grad_wanted == wanted_now
        assert grad is grad_now is None
    assert (random_state == torch.get_rng_state()).all()


def test_the_seed_decides_the_images(images):
    attack = attacks.build(attack_spec(**PGD), Linear(), 2)
    first, again, other = (attacks.perturb(attack, images, LABELS, seed) for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()
    assert attacks.batch_seed(0, 128) == attacks.batch_seed(0, 128) != attacks.batch_seed(0, 256) != attacks.batch_seed(1, 128)


def test_the_images_are_torchattacks_own(images):
    torch.manual_seed(5)
    theirs = torchattacks.PGD(Linear(), eps=8 / 255, alpha=2 / 255, steps=3)(images, LABELS)
    ours = attacks.perturb(attacks.build(attack_spec(**PGD), attacks.frozen_copy(Linear()), 2), images, LABELS, seed=5)
    assert (ours == theirs).all()


def test_ascent_from_the_image_takes_the_steps_of_torchattacks_pgd(network):
    images = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(6) % 3
    theirs = torchattacks.PGD(attacks.frozen_copy(network), eps=8 / 255, alpha=2 / 255, steps=3, random_start=False)(images, labels)
    ours = attacks.ascend(attacks.frozen_copy(network), images, images, labels, eps=8 / 255, alpha=2 / 255, steps=3)
    assert torch.equal(ours, theirs)
    eps, alpha = torch.full((6, 1, 1, 1), 8 / 255), torch.full((6, 1, 1, 1), 2 / 255)
    each = attacks.ascend(attacks.frozen_copy(network), images, images, labels, eps=eps, alpha=alpha, steps=3)
    assert torch.equal(each, theirs)


def test_ascent_starts_where_it_is_told_keeps_each_images_bound_and_goes_both_ways():
    images, start = torch.full((3, 3, 8, 8), 0.5), torch.full((3, 3, 8, 8), 0.52)
    eps = torch.tensor([0.01, 0.05, 0.3]).view(3, 1, 1, 1)
    away = attacks.ascend(Linear(), images, start, LABELS[:3], eps=eps, alpha=0.02, steps=2)
    assert ((away - images).abs().amax((1, 2, 3)) <= eps.flatten() + 1e-7).all()
    assert ((away - images).abs().amax((1, 2, 3))[2] - 0.06).abs() < 1e-6
    towards = attacks.ascend(Linear(), images, start, LABELS[:3], eps=eps, alpha=0.02, steps=2, towards=True)
    assert torch.allclose((away - start)[2], -(towards - start)[2], atol=1e-6)
    assert torch.equal(attacks.ascend(Linear(), images, start, LABELS[:3], eps=eps, alpha=0.02, steps=0), start)


def test_margin_is_the_lead_of_the_best_wrong_class():
    logits = torch.tensor([[1.0, 4.0, 2.0], [3.0, 0.0, 1.0]])
    assert attacks.margin(logits, torch.tensor([0, 0])) == 3 - 2
