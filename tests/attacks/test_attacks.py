import importlib
import sys

import numpy as np
import pytest
import torch
import torchattacks
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from ruamel.yaml import YAML
from torch import nn

from pipeline import attacks, networks
from pipeline.attacks.parameters import ATTACK_PARAMETERS, VALUES, Flag, Numbers, Words
from pipeline.attacks.params import SPARING, expect_classes
from pipeline.base import seeds
from pipeline.base.errors import InputError
from pipeline.base.values import parse_level
from pipeline.networks import matrix_products
from pipeline.networks.memory_fit import InParts
from tests import samples, small_networks
from tests.conftest import FGSM, PGD, attack_spec, make_block, write_set
from tests.recorded_graphs import Recorded


class Linear(nn.Module):
    """Logits that are a known linear function of the pixels.

    The best attack is therefore known too.
    """

    def __init__(self, n_classes: int = 2) -> None:
        super().__init__()
        self.weight = nn.Parameter(
            torch.randn(n_classes, 3 * 8 * 8, generator=torch.Generator().manual_seed(0))
        )

    def forward(self, images):
        return images.flatten(1) @ self.weight.T


@pytest.fixture
def images():
    return torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))


LABELS = torch.tensor([0, 1, 0, 1, 1])


def test_fgsm_equals_the_closed_form_on_a_linear_model(images):
    network = Linear()
    adv_images = attacks.perturb(
        attacks.build(attack_spec(**FGSM), network, 2), images, LABELS, seed=0
    )
    towards_other = (network.weight[1 - LABELS] - network.weight[LABELS]).sign().view_as(images)
    expected = (images + 8 / 255 * towards_other).clamp(0, 1)
    torch.testing.assert_close(adv_images, expected.detach(), rtol=0, atol=0)


def test_pgd_without_random_start_reaches_the_same_corner(images):
    spec = attack_spec(**{**PGD, "steps": 10, "random_start": False})
    adv_images = attacks.perturb(attacks.build(spec, Linear(), 2), images, LABELS, seed=0)
    fgsm = attacks.perturb(attacks.build(attack_spec(**FGSM), Linear(), 2), images, LABELS, seed=0)
    torch.testing.assert_close(adv_images, fgsm, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ATTACK_PARAMETERS)
def test_attacks_that_spare_images_are_named(name):
    network = Linear(4)  # which no change within a level fools
    network.weight.data[1:] = 0
    network.weight.data[0] *= 0.05
    images = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    images = (0.5 + 0.4 * network.weight[0].view(3, 8, 8).sign() * images).detach()
    labels = torch.zeros(6, dtype=torch.int64)
    spec = attack_spec(**{**samples.attack_entry(name), "eps": "1/255"})
    found = attacks.perturb(attacks.build(spec, network, 4), images, labels, seed=0)
    assert torch.equal(found, images) == (name in SPARING)


class Sure(Linear):
    """So sure of class 0 that in float32 the gradient of the mean loss is zero at the pixels.

    For the sure class it is zero even before it reaches them.
    """

    def forward(self, images):
        return 1e-4 * super().forward(images) + torch.tensor([95.0, 0.0])


@pytest.mark.parametrize(
    "spec",
    [
        FGSM,
        {**PGD, "random_start": False},
        {"attack": "BIM", "eps": "8/255", "alpha": "2/255", "steps": 3},
    ],
)
def test_gradients_of_a_sure_network_do_not_underflow(images, spec):
    network, labels = Sure(), torch.zeros(5, dtype=torch.int64)
    assert (torchattacks.FGSM(network, eps=8 / 255)(images, labels) == images).all()
    moved = (
        attacks.perturb(attacks.build(attack_spec(**spec), network, 2), images, labels, seed=0)
        - images
    )
    assert (moved.sign() == network.weight[1].sign().view_as(images[0])).all()


def ends(numbers):
    """The first and the last of a range of numbers, unless it has no end."""
    bounds = (
        numbers.least,
        numbers.most,
        np.nextafter(numbers.above, 1),
        np.nextafter(numbers.below, 0),
    )
    return [
        float(bound) if numbers.kind == "a number" else int(bound)
        for bound in bounds
        if abs(bound) < 1000
    ]


def variants(name):
    """Yield an entry for every word, truth value and range end of the attack's parameters."""
    entry = samples.attack_entry(name)
    yield entry
    for key in ATTACK_PARAMETERS[name]:
        match VALUES.get((name, key)) or VALUES.get(key):
            case Words(values):
                pass
            case Numbers() as numbers:
                values = ends(numbers)
            case Flag():
                values = [True, False]
            case None:
                values = []
        alone = {"noise_batch_size": 1} if key == "batch_max" else {}
        yield from ({**entry, **alone, key: value} for value in values)


@pytest.mark.parametrize("n_classes", [2, 3, 10])
@pytest.mark.parametrize("name", ATTACK_PARAMETERS)
@pytest.mark.filterwarnings("ignore")
def test_accepted_values_run_and_stored_images_keep_the_bound(name, n_classes, images):
    network, labels = networks.frozen_copy(Linear(n_classes)), torch.arange(5) % n_classes
    clean = (images * 255).round().to(torch.uint8)
    for entry in variants(name):
        spec = attack_spec(**entry)
        if spec.fewest_classes > n_classes:
            with pytest.raises(
                InputError, match=f"{name}: expected at least [34] classes, .* found {n_classes}"
            ):
                attacks.build(spec, network, n_classes)
            continue
        adv_images = attacks.perturb(
            attacks.build(spec, network, n_classes), images, labels, seed=0
        )
        assert adv_images.isfinite().all(), entry
        stored = attacks.quantise(adv_images, clean, spec.eps)
        assert (stored.int() - clean.int()).abs().max() <= 8


@pytest.mark.parametrize("name", ["DIFGSM", "TIFGSM"])
@pytest.mark.filterwarnings("ignore")
def test_resized_images_fit_a_network_made_for_one_size(name, network):
    images, labels = (
        torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(2)),
        torch.tensor([0]),
    )
    spec = attack_spec(**{**samples.attack_entry(name), "diversity_prob": 1, "steps": 1})
    target = matrix_products.Frozen(network, 32, torch.bfloat16)
    assert (
        attacks.perturb(attacks.build(spec, InParts(target), 3), images, labels, seed=0)
        .isfinite()
        .all()
    )


@pytest.mark.parametrize(
    ("name", "values", "fewest"),
    [
        ("PGD", {}, 2),
        ("APGD", {"loss": "ce"}, 2),
        ("APGD", {"loss": "dlr"}, 3),
        ("UPGD", {"loss": "dlr"}, 3),
        ("UPGD", {"loss": "margin"}, 2),
        ("Square", {"loss": "margin"}, 2),
        ("APGDT", {}, 4),
        ("AutoAttack", {"version": "rand"}, 3),
        ("AutoAttack", {"version": "standard"}, 4),
        ("AutoAttack", {"version": "plus"}, 4),
    ],
)
def test_a_loss_that_needs_more_classes_is_refused(name, values, fewest):
    spec = attack_spec(**{**samples.attack_entry(name), **values})
    expect_classes({"attacks.x": spec}, fewest)
    message = (
        f"^attacks.x: expected at least {fewest} classes, which the loss of {name} compares, "
        f"found {fewest - 1}; use another loss"
    )
    with pytest.raises(InputError, match=message):
        expect_classes({"attacks.x": spec}, fewest - 1)


@pytest.mark.parametrize(
    ("stage", "arguments", "key"),
    [
        ("generate", "--model m --attack x --out o", "attacks.x"),
        ("evaluate", "--model m --stored s --metrics o --plots p", "evaluate.threats.x"),
    ],
)
def test_stages_refuse_too_few_classes_before_any_work(
    stage, arguments, key, raw_params, tmp_path, monkeypatch
):
    write_set(tmp_path / "clean", make_block(20, n_classes=2), class_names='["a", "b"]')
    entry = {**samples.attack_entry("APGD"), "loss": "dlr"}
    raw_params["attacks"]["x"] = entry
    raw_params["evaluate"]["threats"]["x"] = {**entry, "restarts": 1}
    YAML().dump(raw_params, tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [stage, "--clean", "clean", *arguments.split()])
    message = f"^{key}: expected at least 3 classes, which the loss of APGD compares, found 2"
    with pytest.raises(InputError, match=message):
        getattr(importlib.import_module(f"pipeline.{stage}.__main__"), stage)()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clean", "params.yaml"]


@pytest.mark.parametrize(
    ("word", "theirs"), [("gaussian", "guassian"), ("guassian", "guassian"), ("uniform", "uniform")]
)
def test_gaussian_noise_may_be_spelt_both_ways(word, theirs):
    spec = attack_spec(**{**samples.attack_entry("PGDRS"), "noise_type": word})
    assert attacks.build(spec, Linear(), 2).noise_func.noise_type == theirs


def test_upgd_margin_loss_matches_torchattacks_until_success(images):
    network = Linear(3)
    right = network(images).argmax(1)
    spec = attack_spec(**{**samples.attack_entry("UPGD"), "loss": "margin", "random_start": False})
    theirs = torchattacks.UPGD(network, loss="margin")
    torch.testing.assert_close(
        attacks.build(spec, network, 3).get_loss(images, right), theirs.get_loss(images, right)
    )
    wrong = (right + 1) % 3
    assert (
        theirs.get_loss(images, wrong)
        == 0
        < attacks.build(spec, network, 3).get_loss(images, wrong)
    )


@given(
    hnp.arrays(np.uint8, (2, 3, 4, 4)),
    hnp.arrays(np.float32, (2, 3, 4, 4), elements=st.floats(-2, 3, width=32)),
    st.floats(0.0001, 1),
)
def test_stored_pixels_never_leave_the_ball_or_the_range(clean, adv, eps):
    stored = attacks.quantise(torch.from_numpy(adv), torch.from_numpy(clean), eps).numpy()
    assert stored.dtype == np.uint8
    assert (np.abs(stored.astype(int) - clean.astype(int)) <= eps * 255 + 1e-6).all()


@given(
    hnp.arrays(np.uint8, (1, 3, 4, 4)),
    hnp.arrays(np.int16, (1, 3, 4, 4), elements=st.integers(-8, 8)),
)
def test_quantisation_only_rounds_pixels_inside_the_ball(clean, delta):
    wanted = np.clip(clean + delta, 0, 255)
    adv = torch.from_numpy(wanted / 255 + 0.0015).float()  # under half a step
    stored = attacks.quantise(adv, torch.from_numpy(clean), 9 / 255)
    assert (stored.numpy() == wanted).all()


@pytest.mark.parametrize(
    ("eps", "levels"), [(8 / 255, 8), (0.03, 7), (1 / 255, 1), (1.0, 255), (0.003, 0), (4 / 255, 4)]
)
def test_levels_that_fit(eps, levels):
    assert attacks.eps_levels(eps) == levels


def test_every_whole_number_of_levels_is_exact():
    assert [attacks.eps_levels(parse_level(f"{k}/255")) for k in range(1, 256)] == list(
        range(1, 256)
    )


class Failing(Linear):
    def forward(self, images):
        raise torch.OutOfMemoryError("no memory")


def state(module):
    return [
        (name, tensor.clone(), tensor.requires_grad, tensor.grad)
        for name, tensor in (*module.named_parameters(), *module.named_buffers())
    ]


@pytest.mark.parametrize("make", [Linear, Failing])
def test_model_and_generator_are_unchanged_also_after_an_error(make, images):
    network = make()
    network.train()
    before, random_state = state(network), torch.get_rng_state()
    attack = attacks.build(attack_spec(**PGD), networks.frozen_copy(network), 2)
    try:
        attacks.perturb(attack, images, LABELS, seed=3)
    except torch.OutOfMemoryError:
        assert make is Failing
    assert network.training
    for (_, tensor, grad_wanted, grad), (_, now, wanted_now, grad_now) in zip(
        before, state(network), strict=True
    ):
        assert (tensor == now).all()
        assert grad_wanted == wanted_now
        assert grad is grad_now is None
    assert (random_state == torch.get_rng_state()).all()


def test_the_seed_decides_the_images(images):
    attack = attacks.build(attack_spec(**PGD), Linear(), 2)
    first, again, other = (attacks.perturb(attack, images, LABELS, seed) for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()
    assert (
        seeds.batch_seed(0, 128)
        == seeds.batch_seed(0, 128)
        != seeds.batch_seed(0, 256)
        != seeds.batch_seed(1, 128)
    )


def test_the_images_are_torchattacks_own(images):
    torch.manual_seed(5)
    theirs = torchattacks.PGD(Linear(), eps=8 / 255, alpha=2 / 255, steps=3)(images, LABELS)
    ours = attacks.perturb(
        attacks.build(attack_spec(**PGD), networks.frozen_copy(Linear()), 2), images, LABELS, seed=5
    )
    assert (ours == theirs).all()


def test_ascent_from_the_image_matches_torchattacks_pgd(network):
    images = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(6) % 3
    theirs = torchattacks.PGD(
        networks.frozen_copy(network), eps=8 / 255, alpha=2 / 255, steps=3, random_start=False
    )(images, labels)
    ours = attacks.Ascent()(
        networks.frozen_copy(network), images, images, labels, eps=8 / 255, alpha=2 / 255, steps=3
    )
    assert torch.equal(ours, theirs)
    eps, alpha = torch.full((6, 1, 1, 1), 8 / 255), torch.full((6, 1, 1, 1), 2 / 255)
    each = attacks.Ascent()(
        networks.frozen_copy(network), images, images, labels, eps=eps, alpha=alpha, steps=3
    )
    assert torch.equal(each, theirs)


def test_ascent_keeps_each_bound_from_any_start_in_both_signs():
    images, start = torch.full((3, 3, 8, 8), 0.5), torch.full((3, 3, 8, 8), 0.52)
    eps = torch.tensor([0.01, 0.05, 0.3]).view(3, 1, 1, 1)
    away = attacks.Ascent()(Linear(), images, start, LABELS[:3], eps=eps, alpha=0.02, steps=2)
    assert ((away - images).abs().amax((1, 2, 3)) <= eps.flatten() + 1e-7).all()
    assert ((away - images).abs().amax((1, 2, 3))[2] - 0.06).abs() < 1e-6
    towards = attacks.Ascent(towards=True)(
        Linear(), images, start, LABELS[:3], eps=eps, alpha=0.02, steps=2
    )
    assert torch.allclose((away - start)[2], -(towards - start)[2], atol=1e-6)
    assert torch.equal(
        attacks.Ascent()(Linear(), images, start, LABELS[:3], eps=eps, alpha=0.02, steps=0), start
    )


def test_margin_is_the_lead_of_the_best_wrong_class():
    logits = torch.tensor([[1.0, 4.0, 2.0], [3.0, 0.0, 1.0]])
    assert attacks.margin(logits, torch.tensor([0, 0])) == 3 - 2


@pytest.mark.parametrize("eps", [8 / 255, torch.full((3, 1, 1, 1), 8 / 255)])
def test_a_captured_ascent_takes_the_same_steps(eps):
    network, images, graphs = Linear(), torch.rand(3, 3, 8, 8), Recorded()
    taken = {"eps": eps, "alpha": 0.01, "steps": 5}
    captured = attacks.Ascent(graphs=graphs)
    for _ in range(2):
        found = captured(network, images, images, LABELS[:3], **taken)
        assert torch.equal(found, attacks.Ascent()(network, images, images, LABELS[:3], **taken))
    assert graphs.calls.count("capture") == 1, "the step is kept from call to call"
    captured(Linear(), images, images, LABELS[:3], **taken)
    assert graphs.calls.count("capture") == 2, "another network has a step of its own"


SELF_SEEDED = {
    "APGD": {"steps": 2, "n_restarts": 1, "loss": "ce", "eot_iter": 1, "rho": 0.75},
    "Square": {
        "n_queries": 50,
        "n_restarts": 1,
        "p_init": 0.8,
        "loss": "margin",
        "resc_schedule": True,
    },
}


@pytest.mark.parametrize("name", SELF_SEEDED)
def test_attacks_that_seed_themselves_get_the_seed_of_their_batch(name):
    network, spec = small_networks.network(), attack_spec(attack=name, eps=1.0, **SELF_SEEDED[name])
    images = torch.from_numpy(make_block(8, size=8).images) / 255
    labels = network(images).argmax(1)  # attacks leave an image that is wrong as it is
    attack = attacks.build(spec, network, 10)
    first, second, again = (attacks.perturb(attack, images, labels, seed) for seed in (1, 2, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_the_members_of_autoattack_get_the_seed_too(images, monkeypatch):
    monkeypatch.setattr(torchattacks.AutoAttack, "forward", lambda self, images, labels: images)
    spec = attack_spec(attack="AutoAttack", eps=8 / 255, version="standard")
    attack = attacks.build(spec, small_networks.network(), 10)
    attacks.perturb(attack, images, LABELS, 7)
    assert {member.seed for member in attack._autoattack.attacks} == {7}


@pytest.mark.parametrize(
    ("attributes", "each"),
    [
        ({"attack.class": "FGSM"}, 1),
        ({"attack.class": "PGD", "attack.steps": 10}, 10),
        ({"attack.class": "EOTPGD", "attack.steps": 3, "attack.eot_iter": 4}, 12),
        ({"attack.class": "VMIFGSM", "attack.steps": 2, "attack.N": 5}, 12),
        ({"attack.class": "SINIFGSM", "attack.steps": 2, "attack.m": 5}, 10),
        ({"attack.class": "PIFGSM", "attack.num_iter_set": 6}, 6),
        ({"attack.class": "UPGD", "attack.steps": 3, "attack.eot_iter": 4}, 12),
        ({"attack.class": "PGDRS", "attack.steps": 3, "attack.noise_batch_size": 5}, 15),
        (
            {
                "attack.class": "APGD",
                "attack.steps": 3,
                "attack.eot_iter": 2,
                "attack.n_restarts": 4,
            },
            24,
        ),
        (
            {
                "attack.class": "APGDT",
                "attack.steps": 3,
                "attack.eot_iter": 1,
                "attack.n_restarts": 2,
            },
            54,
        ),
    ],
)
def test_gradients_of_a_set_are_counted(attributes, each):
    class Images:
        class_names = tuple("0123456789")

        def __init__(self):
            self.attributes = attributes

        def __len__(self):
            return 4

    assert attacks.passes(Images()) == 4 * each
